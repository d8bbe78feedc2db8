"""A saved model reloads with the same bits, or one sentence says why it does not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire import LM, PromptFormat, UserError
from latentwire.lm.loading import saving
from latentwire.lm.prefix import Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm, tiny_model, tiny_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_lm().save(folder)
    return folder


@pytest.mark.parametrize("family", [*FAMILIES, "llama_tied"])
def test_what_is_saved_comes_back_to_the_bit(family: str, tmp_path: Path) -> None:
    lm = tiny_lm(family, seed=3)
    lm.format = PromptFormat(template="raw", anchor="A:", anchor_block="causal")
    lm.save(tmp_path / "there")
    back = LM.load(tmp_path / "there", device="cpu")
    state, again = lm.model.state_dict(), back.model.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    tied = family in ("gemma3", "llama_tied")
    shared = back.model.get_input_embeddings().weight is back.model.get_output_embeddings().weight
    assert shared == tied
    assert back.format == lm.format
    assert back.name == str(tmp_path / "there")
    assert not back.model.training
    assert back.model.config._attn_implementation == "latentwire_sdpa"
    prefix = Prefix.of_tokens([numbers(9, 1)], [[0] * 9])
    assert torch.equal(lm.prefill(prefix).logits, back.prefill(prefix).logits)
    text = "Ada has 12 apples."
    assert lm.tokenizer(text)["input_ids"] == back.tokenizer(text)["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert "latentwire" not in (tmp_path / "there" / "config.json").read_text()


def test_a_second_save_replaces_the_first(saved: Path) -> None:
    other = tiny_lm(seed=9)
    other.save(saved)
    back = LM.load(saved, device="cpu").model.state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in other.model.state_dict().items())
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_half_precision_comes_back_as_asked(tmp_path: Path) -> None:
    lm = LM(tiny_model().to(torch.bfloat16), tiny_tokenizer())
    lm.save(tmp_path / "half")
    back = LM.load(tmp_path / "half", device="cpu", dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), back.model.parameters(), strict=True))
    assert LM.load(tmp_path / "half", device="cpu").model.dtype == torch.float32


@pytest.mark.parametrize("step", ["save_torch_state_dict", "load_file"])
def test_a_failed_save_leaves_the_old_one_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = tiny_lm(seed=9)
    real: Callable[..., Any] = getattr(saving, step)

    def fails(*args: Any, **kwargs: Any) -> Any:
        if step == "load_file":  # what is read back is not what was written
            return {name: tensor + 1 for name, tensor in real(*args, **kwargs).items()}
        real(*args, **kwargs)
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, step, fails)
    for folder in (saved, saved.parent / "new"):
        with pytest.raises((OSError, RuntimeError)):
            other.save(folder)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_the_old_weights_exist_until_the_new_ones_are_complete(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at any instant loses nothing: the old folder is moved away, never deleted first."""

    def killed(self: Path, target: Path) -> Path:
        complete = [p for p in saved.parent.iterdir() if (p / "prompt_format.json").exists()]
        assert len(complete) == 2
        moves.append(target.name)
        return real(self, target)

    moves: list[str] = []

    real = Path.rename
    monkeypatch.setattr(Path, "rename", killed)
    tiny_lm(seed=9).save(saved)
    assert moves[-1] == "model"
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_model_that_would_not_reload_is_not_put_in_place(saved: Path) -> None:
    """An adapter inside the model has names that a plain model has no place for."""
    import peft

    lm = tiny_lm(seed=4)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"], r=2), lm.model)
    with pytest.raises(RuntimeError, match=r"q_proj.* has no place in a plain LlamaForCausalLM"):
        lm.save(saved)
    assert torch.equal(LM.load(saved, device="cpu").model.lm_head.weight, tiny_lm().model.lm_head.weight)


# What is refused on loading.


def tensors(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    (file,) = folder.glob("*.safetensors")
    return file, load_file(file)


def nan(folder: Path) -> None:
    file, state = tensors(folder)
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(state, file, {"format": "pt"})


def infinity(folder: Path) -> None:
    file, state = tensors(folder)
    state["model.norm.weight"][0] = torch.inf
    save_file(state, file, {"format": "pt"})


def missing(folder: Path) -> None:
    file, state = tensors(folder)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, file, {"format": "pt"})


def extra(folder: Path) -> None:
    file, state = tensors(folder)
    state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(state, file, {"format": "pt"})


def shape(folder: Path) -> None:
    file, state = tensors(folder)
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 5)
    save_file(state, file, {"format": "pt"})


def truncated(folder: Path) -> None:
    file, _ = tensors(folder)
    file.write_bytes(file.read_bytes()[:1000])


def cut_off(folder: Path) -> None:
    file, _ = tensors(folder)
    file.write_bytes(file.read_bytes()[:-100])


def no_header(folder: Path) -> None:
    file, _ = tensors(folder)
    file.write_bytes((50).to_bytes(8, "little") + b"}" * 100)


def swapped(folder: Path) -> None:
    file, state = tensors(folder)
    up, down = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
    save_file({**state, up: state[down], down: state[up]}, file, {"format": "pt"})


def float8(folder: Path) -> None:
    file, state = tensors(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**state, name: state[name].to(torch.float8_e4m3fn)}, file, {"format": "pt"})


def integers(folder: Path) -> None:
    file, state = tensors(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**state, name: state[name].to(torch.int64)}, file, {"format": "pt"})


def booleans(folder: Path) -> None:
    file, state = tensors(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**state, name: state[name] > 0}, file, {"format": "pt"})


def shard_outside(folder: Path) -> None:
    file, state = tensors(folder)
    file.rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(state, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(folder: Path) -> None:
    tensors(folder)[0].unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


def pickled(folder: Path) -> None:
    file, state = tensors(folder)
    file.unlink()
    torch.save(state, folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    tensors(folder)[0].unlink()


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def strange_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))


def encoder_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))


def broken_format(folder: Path) -> None:
    (folder / "prompt_format.json").write_text('{"template": "poem"}')


def unknown_format(folder: Path) -> None:
    (folder / "prompt_format.json").write_text('{"few_shot": 5}')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (nan, "model.layers.1.mlp.up_proj.weight.*NaN"),
        (infinity, "model.norm.weight.*infinity"),
        (missing, "lacks 1 tensor.*model.layers.1.mlp.up_proj.weight"),
        (extra, "no place for 1 tensor.*model.layers.7.mlp.up_proj.weight"),
        (shape, r"model.layers.1.mlp.up_proj.weight of .* has shape \[5, 5\], expected \[48, 32\]"),
        (truncated, "cannot be loaded.*cut off within its header"),
        (cut_off, r"weights: model\.\S+ in .* is cut off: found [\d,]+ bytes, expected"),
        (no_header, "header is not that of safetensors"),
        (swapped, r"model.layers.1.mlp.(down|up)_proj.weight of .* has shape"),
        (float8, "model.layers.1.mlp.up_proj.weight in .* is float8 but"),
        (integers, "model.layers.1.mlp.up_proj.weight in .* holds I64 values, expected floating-point numbers"),
        (booleans, "model.layers.1.mlp.up_proj.weight in .* holds BOOL values, expected floating-point numbers"),
        (
            shard_outside,
            r"index.json names '../elsewhere.safetensors', expected the name of a file",
        ),
        (broken_index, "no index of safetensors"),
        (pickled, "safetensors"),
        (no_weights, "cannot be loaded"),
        (no_tokenizer, "tokenizer"),
        (broken_tokenizer, "cannot be loaded"),
        (no_config, "config.json"),
        (broken_config, "cannot be loaded"),
        (list_config, "cannot be loaded"),
        (strange_config, "never_heard_of"),
        (encoder_config, "cannot be loaded"),
        (broken_format, "prompt_format.json.*template"),
        (unknown_format, "prompt_format.json.*few_shot"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_folder_is_refused_in_one_sentence(saved: Path, harm: Callable[[Path], None], said: str) -> None:
    harm(saved)
    one_sentence(str(saved), said)


def one_sentence(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        LM.load(spec, device="cpu")
    text = str(error.value)
    assert "\n" not in text
    assert 30 < len(text) < 450
    assert not text.rstrip().endswith(":"), f"half a sentence: {text}"


def test_a_path_without_a_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    one_sentence(str(tmp_path / "file"), "found a file at")
    one_sentence(str(tmp_path / "empty"), "found no config.json")
    one_sentence(str(tmp_path / "nothing"), "found nothing at")
    one_sentence("./nothing", "found nothing at")
    one_sentence("~/nothing/there", "found nothing at")
    one_sentence("", "found no config.json in [.]")
    one_sentence("embedded:herring", "found 'herring', expected one of .*heron")
    one_sentence("nobody/never-uploaded-this", "nobody/never-uploaded-this cannot be loaded")
    one_sentence("never-uploaded-this", "never-uploaded-this cannot be loaded")


# What is saved although a library would not write it, and what is left by processes that were killed.


def test_sampling_values_of_a_greedy_model_are_kept(tmp_path: Path) -> None:
    """Many published models carry them; Transformers refuses to write such a generation configuration."""
    lm = tiny_lm()
    lm.model.generation_config.temperature, lm.model.generation_config.top_p = 0.9, 0.6
    lm.model.generation_config.do_sample = False
    lm.save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (written["temperature"], written["top_p"]) == (0.9, 0.6)
    assert not LM.load(tmp_path / "saved", device="cpu").model.generation_config.do_sample


def test_two_tensors_under_a_tied_flag_are_saved_as_two(tmp_path: Path) -> None:
    tiny_lm("llama_tied").save(tmp_path / "model")
    file, state = tensors(tmp_path / "model")
    head = "lm_head.weight"
    save_file({**state, head: state["model.embed_tokens.weight"] * 1.3}, file, {"format": "pt"})
    lm = LM.load(tmp_path / "model", device="cpu")
    prefix = Prefix.of_tokens([numbers(9, 1)])
    logits = lm.prefill(prefix).logits
    lm.save(tmp_path / "saved")
    assert not json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"]
    back = LM.load(tmp_path / "saved", device="cpu")
    assert torch.equal(back.prefill(prefix).logits, logits)
    assert not torch.equal(back.model.lm_head.weight, back.model.get_input_embeddings().weight)


def test_a_tokenizer_that_does_not_come_back_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    other = tiny_tokenizer(merge_blanks=True)
    monkeypatch.setattr(lm.tokenizer, "save_pretrained", other.save_pretrained)
    with pytest.raises(RuntimeError, match="the tokenizer read back from disk has"):
        lm.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"LlamaForCausalLM that cannot be saved .the tokenizer read back"):
        saving.check_saveable(lm.model, lm.tokenizer, lm.format)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_tokenizer_of_another_class_than_the_models_own_is_read_word_for_word(
    family: str, tmp_path: Path
) -> None:
    lm = tiny_lm(family)  # for qwen2, Transformers takes its own class, which adds a token and splits otherwise
    lm.save(tmp_path / "saved")
    back = LM.load(tmp_path / "saved", device="cpu")
    assert back.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
    text = "Question: where?\n\n  na\u00efve \u5317\u4eac 1,234 <|endoftext|>"
    assert back.tokenizer(text)["input_ids"] == lm.tokenizer(text)["input_ids"]
    assert saving.check_saveable(back.model, back.tokenizer, back.format) is None


def test_what_cannot_be_saved_is_found_out_before_a_training(tmp_path: Path) -> None:
    import peft

    lm = tiny_lm()
    saving.check_saveable(lm.model, lm.tokenizer, lm.format)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"], r=2), lm.model)
    with pytest.raises(UserError, match=r"cannot be saved .*q_proj.* has no place in a plain LlamaForCausalLM"):
        saving.check_saveable(lm.model, lm.tokenizer, lm.format)


def test_saved_files_have_the_mode_of_other_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tiny_lm().save(tmp_path / "model")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {"0o640"}


def test_what_killed_processes_left_is_removed_by_the_next_save(saved: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [f".model.partial-{dead.pid}@{socket.gethostname()}", f".model.partial-{dead.pid}"]
    kept = [f".model.partial-{os.getppid()}@{socket.gethostname()}", f".model.partial-{dead.pid}@elsewhere"]
    for name in (*left, *kept, ".models.partial-1"):
        (saved.parent / name).mkdir()
        (saved.parent / name / "model.safetensors").write_bytes(b"half")
    tiny_lm(seed=9).save(saved)
    assert {path.name for path in saved.parent.iterdir()} == {"model", *kept, ".models.partial-1"}


def test_a_kill_between_the_two_renames_costs_nothing_but_the_new_weights(saved: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    saved.rename(saved.parent / f".model.old-{dead.pid}@{socket.gethostname()}")
    with pytest.raises(ZeroDivisionError), saving.appearing(saved):
        _ = 1 / 0
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


# A tokenizer with more tokens than the model has embeddings.


def test_a_token_without_an_embedding_is_named_when_it_is_read() -> None:
    tokenizer = tiny_tokenizer()
    rows = tiny_model().get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<new{at}>" for at in range(rows - len(tokenizer) + 1)])
    token, number = f"<new{rows - len(tiny_tokenizer())}>", rows
    assert tokenizer.convert_tokens_to_ids(token) == number
    lm = LM(tiny_model(), tokenizer, name="it")
    lm.prefill(Prefix.of_tokens([numbers(9, 1)]))
    said = rf"tokenizer: found the token '{token}' with the id {number}, and it has {rows} embeddings"
    with pytest.raises(UserError, match=said):
        lm.prefill(Prefix.of_tokens([[5, number, 7]]))
    with pytest.raises(UserError, match=said):
        lm.embed(torch.tensor([[5, number]]))

"""Save and load: the same bits back, or one sentence that says why not."""

from __future__ import annotations

import json
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


def test_the_old_weights_exist_until_the_new_ones_stand_beside_them(
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


def test_what_would_not_reload_is_not_put_in_place(saved: Path) -> None:
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


def test_what_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
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

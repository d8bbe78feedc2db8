"""Checkpoints of every published form are read as they are meant, and saved with the same meaning."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, FineGrainedFP8Config

from latentwire import LM, UserError
from latentwire.lm.loading import saving
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import CAUSAL
from tests.support.checkpoints import dequantized, image_text_model, write_fp8, write_gguf, write_lora, write_plain
from tests.support.dense import Layout, dense, numbers, stock
from tests.support.models import tiny_lm, tiny_model, tiny_tokenizer

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")


def _ministral_fp8(at: Path) -> LM:
    write_fp8(tiny_model("ministral3"), at / "m")
    return LM.load(at / "m", device="cpu")


def _mistral3_fp8(at: Path) -> LM:
    write_fp8(image_text_model(), at / "m")
    return LM.load(at / "m", device="cpu")


def _mistral3_tied(at: Path) -> LM:
    return LM.load(write_plain(image_text_model(tied=True), at / "m"), device="cpu")


def _gguf(at: Path) -> LM:
    write_gguf(at / "m.gguf")
    return LM.load(at / "m.gguf", device="cpu")


def _tied(at: Path) -> LM:
    return LM.load(write_plain(tiny_model("llama_tied"), at / "m"), device="cpu")


def _lora(at: Path) -> LM:
    write_lora(tiny_model(), at / "lora")
    return LM.load(write_plain(tiny_model(), at / "m"), device="cpu", adapter=at / "lora")


@pytest.mark.parametrize(
    "make",
    [_ministral_fp8, _mistral3_fp8, _mistral3_tied, pytest.param(_gguf, marks=needs_gguf), _tied, _lora],
    ids=lambda make: make.__name__.strip("_"),
)
def test_load_two_steps_save_reload_gives_the_same_bits(make: Callable[[Path], LM], tmp_path: Path) -> None:
    lm = make(tmp_path)
    lm.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-2)
    prefix, answers = Prefix.of_tokens([numbers(9, 1)], [[0] * 9]), torch.tensor([numbers(4, 2)])
    before = lm.prefill(prefix).logits
    for _ in range(2):
        forced = lm.forced(prefix, answers)
        loss = torch.nn.functional.cross_entropy(lm.head(forced.hidden)[0], answers[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = lm.prefill(prefix).logits
    assert not torch.allclose(before, after, atol=1e-2)
    lm.save(tmp_path / "out")
    back = LM.load(tmp_path / "out", device="cpu")
    assert torch.equal(back.prefill(prefix).logits, after)
    assert type(back.model) is type(lm.model)
    state, again = lm.model.state_dict(), back.model.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    (file,) = (tmp_path / "out").glob("*.safetensors")
    written = load_file(file)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert not [name for name in written if "scale" in name or "lora" in name or "vision" in name]
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("family", ["ministral3", "mistral3"])
def test_an_fp8_checkpoint_is_read_as_weights_times_scales(family: str, tmp_path: Path) -> None:
    written = write_fp8(image_text_model() if family == "mistral3" else tiny_model(family), tmp_path / "m")
    assert torch.float8_e4m3fn in {tensor.dtype for tensor in written.values()}
    for dtype in (torch.float32, torch.bfloat16):
        state = LM.load(tmp_path / "m", device="cpu", dtype=dtype).model.state_dict()
        meant = dequantized(written)
        assert state.keys() == meant.keys()
        assert all(torch.equal(tensor, meant[name].to(dtype)) for name, tensor in state.items())


def test_plain_save_pretrained_still_corrupts_a_dequantized_fp8_model(tmp_path: Path) -> None:
    """Why `saving` exists. When this fails, Transformers has mended it, and `saving` may be thought over."""
    write_fp8(tiny_model("ministral3"), tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "bad")
    written = load_file(tmp_path / "bad" / "model.safetensors")
    assert written["model.embed_tokens.weight"].dtype == torch.float8_e4m3fn
    assert [name for name in written if "scale" in name]
    assert "quantization_config" not in (tmp_path / "bad" / "config.json").read_text()
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "bad", dtype=torch.float32)
    with torch.no_grad():
        ratio = back.model.embed_tokens.weight.std() / model.model.embed_tokens.weight.std()
    assert float(ratio) > 100
    # Such a folder is not read: its scales are in the file, but nothing says what they are.
    tiny_tokenizer().save_pretrained(tmp_path / "bad")
    with pytest.raises(UserError, match=r"weight in .* is float8 but config.json has no quantization_config"):
        LM.load(tmp_path / "bad", device="cpu")
    # Of a model that LM.load made, even `save_pretrained` writes what it is.
    lm = LM.load(tmp_path / "m", device="cpu")
    lm.model.save_pretrained(tmp_path / "good")
    assert {tensor.dtype for tensor in load_file(tmp_path / "good" / "model.safetensors").values()} == {
        torch.float32
    }


def test_the_text_side_of_an_image_text_model_gives_the_logits_of_the_whole(tmp_path: Path) -> None:
    whole = image_text_model()
    lm = LM.load(write_plain(whole, tmp_path / "m"), device="cpu")
    assert type(lm.model).__name__ == "Ministral3ForCausalLM"
    assert lm.model.config._attn_implementation == "latentwire_sdpa"
    ids = torch.tensor([numbers(12, 3)])
    ours = lm.prefill(Prefix.of_tokens(ids.tolist())).logits
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")(input_ids=ids).logits[:, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_masks_reach_the_text_side_of_an_image_text_model(tmp_path: Path) -> None:
    lm = LM.load(write_plain(image_text_model(), tmp_path / "m"), device="cpu")
    prompt, answer = numbers(9, 1), numbers(4, 2)
    prefix = Prefix.of_tokens([prompt], [[0] * 9])
    row = Layout([True] * 13, list(range(13)), [0] * 9 + [CAUSAL] * 4, [-1] * 13)
    slow = dense(stock(lm.model), torch.tensor([prompt + answer]), [row])[0, 8:-1]
    torch.testing.assert_close(lm.prefill(prefix).logits[0], slow[0], atol=1e-4, rtol=0)
    forced = lm.head(lm.forced(prefix, torch.tensor([answer])).hidden)[0]
    torch.testing.assert_close(forced, slow, atol=1e-4, rtol=0)
    ((score,),) = lm.score(lm.prefill(prefix), [[answer]])
    wanted = slow.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
    assert score.logprob == pytest.approx(float(wanted.detach()), abs=1e-3)
    (generated,) = lm.generate(lm.prefill(prefix))
    assert generated.ids[0] == int(slow[0].argmax())


@needs_gguf
def test_a_gguf_file_is_read_as_the_model_it_was_made_from(tmp_path: Path) -> None:
    meant = write_gguf(tmp_path / "m.gguf").state_dict()
    lm = LM.load(tmp_path / "m.gguf", device="cpu")
    state = lm.model.state_dict()
    assert state.keys() == meant.keys()
    assert all(torch.equal(tensor, meant[name]) for name, tensor in state.items())
    text = "Ada has 12 apples."
    assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


@needs_gguf
def test_a_cut_off_gguf_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"m.gguf cannot be loaded"):
        LM.load(tmp_path / "m.gguf", device="cpu")


def test_an_fp8_weight_without_its_scale_is_refused_by_name(tmp_path: Path) -> None:
    written = write_fp8(tiny_model("ministral3"), tmp_path / "m")
    del written["model.layers.1.mlp.up_proj.weight_scale_inv"]
    save_file(written, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight .* is float8, expected .*weight_scale_inv"):
        LM.load(tmp_path / "m", device="cpu")


def test_a_checkpoint_in_shards_is_read_whole_or_refused_by_the_name_of_a_tensor(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    state = LM.load(tmp_path, device="cpu").model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    shards[1].unlink()
    with pytest.raises(UserError, match=r"found no model-00002-of-.*expected it to hold (model|lm_head)\."):
        LM.load(tmp_path, device="cpu")


def test_four_bits_without_bitsandbytes_are_refused_in_one_sentence(tmp_path: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    write_plain(tiny_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"quantized with bitsandbytes, which is not installed"):
        LM.load(tmp_path, device="cpu")


def test_a_device_map_says_where_modules_go(tmp_path: Path) -> None:
    write_plain(tiny_model(), tmp_path)
    lm = LM.load(tmp_path, device_map={"": "cpu"}, dtype=torch.float32)
    prefix = Prefix.of_tokens([numbers(9, 1)])
    want = LM.load(tmp_path, device="cpu").prefill(prefix).logits
    torch.testing.assert_close(lm.prefill(prefix).logits, want, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="device_map: found a device beside it"):
        LM.load(tmp_path, device="cpu", device_map={"": "cpu"})


def test_plain_weights_are_read_straight_to_a_gpu_and_others_through_host_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host copy of a large model takes longer than its files; what is merged or undone first needs one."""
    asked = []

    def loads(*_: object, **options: object) -> object:
        asked.append(options.get("device_map"))
        raise OSError("enough")

    write_plain(tiny_model(), tmp_path / "plain")
    write_fp8(tiny_model("ministral3"), tmp_path / "fp8")
    write_lora(tiny_model(), tmp_path / "lora")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loads)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for how in (
        {"spec": tmp_path / "plain", "device": "cuda"},
        {"spec": tmp_path / "plain", "device": "cuda:1"},
        {"spec": tmp_path / "plain", "device": "cpu"},
        {"spec": tmp_path / "plain", "device": "cuda", "adapter": tmp_path / "lora"},
        {"spec": tmp_path / "fp8", "device": "cuda"},
    ):
        with pytest.raises(UserError, match="enough"):
            LM.load(**how)
    assert asked == [{"": "cuda:3"}, {"": "cuda:1"}, None, None, None]


def test_a_save_that_reloads_with_other_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors come back, but a setting that shapes the computation does not."""
    lm = tiny_lm()
    real = type(lm.model.config).save_pretrained

    def forgets(self: object, folder: Path) -> None:
        real(self, folder)  # type: ignore[arg-type]
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))

    monkeypatch.setattr(type(lm.model.config), "save_pretrained", forgets)
    with pytest.raises(RuntimeError, match="other logits on a probe batch"):
        lm.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_with_weights_that_are_not_finite_is_not_saved(tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(RuntimeError, match=r"model.norm.weight holds NaN"):
        saving.save(lm.model, lm.tokenizer, lm.format, tmp_path / "out")
    assert not list(tmp_path.iterdir())

"""A merged PEFT adapter gives the same logits as beside the model, or one sentence says why it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from latentwire import LM, UserError
from tests.support.checkpoints import write_lora, write_plain
from tests.support.dense import numbers
from tests.support.models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("options", [{}, {"target_modules": "all-linear"}, {"use_dora": True}], ids=str)
def test_a_lora_adapter_is_merged(options: dict[str, object], tmp_path: Path) -> None:
    adapted = write_lora(tiny_model(), tmp_path / "lora", **options)
    write_plain(tiny_model(), tmp_path / "m")
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")
    ids = torch.tensor([numbers(12, 3)])
    wanted = adapted(input_ids=ids).logits
    plain = LM.load(tmp_path / "m", device="cpu").model(input_ids=ids).logits
    torch.testing.assert_close(lm.model(input_ids=ids).logits, wanted, atol=1e-3, rtol=0)
    assert not torch.allclose(plain, wanted, atol=1e-1)
    assert not [name for name, _ in lm.model.named_parameters() if "lora" in name]


def _no_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _pickled_adapter(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def _changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        state = load_file(folder / "adapter_model.safetensors")
        change(state)
        save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})

    return harm


_KEY = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_no_adapter, "found no adapter_config.json"),
        (_no_json, "not the configuration of a PEFT adapter"),
        (_pickled_adapter, "found no adapter_model.safetensors .* pickled"),
        (_changed(lambda state: state.__delitem__(_KEY)), r"layers.1.mlp.up_proj.lora_A.weight is missing from"),
        (
            _changed(lambda state: state.update({_KEY.replace("1", "7"): state[_KEY].clone()})),
            r"layers.7.* finds no place",
        ),
        (_changed(lambda state: state.update({_KEY: torch.zeros(2, 5)})), r"does not fit .*up_proj"),
        (_changed(lambda state: state.update({_KEY: state[_KEY] * torch.nan})), r"up_proj.lora_A.weight .* NaN"),
    ],
    ids=["none", "no_json", "pickled", "missing", "extra", "shape", "nan"],
)
def test_a_damaged_adapter_is_refused_in_one_sentence(
    harm: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    write_lora(tiny_model(), tmp_path / "lora")
    write_plain(tiny_model(), tmp_path / "m")
    harm(tmp_path / "lora")
    with pytest.raises(UserError, match=said) as error:
        LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")
    assert "\n" not in str(error.value)


def test_an_adapter_of_tied_embeddings_is_refused(tmp_path: Path) -> None:
    """Merged into the head it would change the embedding too."""
    write_lora(tiny_model("llama_tied"), tmp_path / "lora", target_modules=["lm_head"])
    write_plain(tiny_model("llama_tied"), tmp_path / "m")
    with pytest.raises(UserError, match="gives other logits than beside it"):
        LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")


def test_an_adapter_that_peft_refuses_to_merge_is_refused_in_one_sentence(tmp_path: Path) -> None:
    write_lora(tiny_model(), tmp_path / "lora", lora_bias=True)
    write_plain(tiny_model(), tmp_path / "m")
    with pytest.raises(UserError, match=r"lora cannot be merged into LlamaForCausalLM: .*lora_bias"):
        LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")


def test_an_embedding_saved_whole_by_an_adapter_of_a_tied_model_is_saved_untied(tmp_path: Path) -> None:
    write_lora(tiny_model("llama_tied"), tmp_path / "lora", modules_to_save=["lm_head"])
    state = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    (name,) = (name for name in state if "lm_head" in name)
    state[name] = state[name] * 1.5
    save_file(state, tmp_path / "lora" / "adapter_model.safetensors", {"format": "pt"})
    write_plain(tiny_model("llama_tied"), tmp_path / "m")
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")
    lm.save(tmp_path / "out")
    ids = torch.tensor([numbers(12, 3)])
    assert torch.equal(LM.load(tmp_path / "out", device="cpu").model(input_ids=ids).logits, lm.model(ids).logits)


# An adapter's own tokenizer.


def _with_tokens(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_an_adapter_is_read_with_the_tokenizer_it_was_trained_with(tmp_path: Path) -> None:
    model = tiny_model(vocab_size=400)
    write_lora(model, tmp_path / "lora")
    _with_tokens("<doc>", "<sep>").save_pretrained(tmp_path / "lora")
    write_plain(tiny_model(vocab_size=400), tmp_path / "m")
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")
    text = "<doc> Ada lives here.<sep>"
    wanted = _with_tokens("<doc>", "<sep>")(text)["input_ids"]
    assert lm.tokenizer(text)["input_ids"] == wanted
    assert len(LM.load(tmp_path / "m", device="cpu").tokenizer(text)["input_ids"]) > len(wanted)
    lm.save(tmp_path / "out")
    assert LM.load(tmp_path / "out", device="cpu").tokenizer(text)["input_ids"] == wanted


def test_an_adapters_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    rows = model.get_input_embeddings().weight.shape[0]
    spare = rows - len(tiny_tokenizer())
    write_lora(model, tmp_path / "lora")
    _with_tokens(*(f"<new{at}>" for at in range(spare + 1))).save_pretrained(tmp_path / "lora")
    write_plain(tiny_model(), tmp_path / "m")
    with pytest.raises(
        UserError, match=rf"gives '<new{spare}>' the id {rows}, and the model has {rows} embeddings"
    ):
        LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "lora")


# An adapter where a model is expected.


def test_an_adapter_named_as_a_model_is_pointed_to_the_adapter_option(tmp_path: Path) -> None:
    write_plain(tiny_model(), tmp_path / "m")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    write_lora(base, tmp_path / "lora")
    with pytest.raises(UserError, match=r"found only an adapter in .*; write --model .*m --adapter .*lora[.]"):
        LM.load(tmp_path / "lora", device="cpu")


def test_an_adapter_beside_the_weights_of_a_model_is_not_applied_unasked(tmp_path: Path) -> None:
    write_plain(tiny_model(), tmp_path / "m")
    write_lora(tiny_model(), tmp_path / "lora")
    for file in (tmp_path / "lora").glob("adapter_*"):
        shutil.copy(file, tmp_path / "m")
    for adapter in (None, tmp_path / "m"):
        with pytest.raises(UserError, match=r"found an adapter beside the weights of .*; expected one of the two"):
            LM.load(tmp_path / "m", device="cpu", adapter=adapter)

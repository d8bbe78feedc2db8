"""Models that do not attend as their mask says are refused before they print a number."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForSeq2SeqLM,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from latentwire import LM, UserError
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import CAUSAL, Columns, Reading
from latentwire.lm.prefix import Forced, Prefix
from latentwire.training.losses import summed_nats
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm, tiny_model, tiny_tokenizer


def refused(model: PreTrainedModel, said: str, kernel: str | None = None) -> None:
    with pytest.raises(UserError, match=said) as error:
        LM(model, tiny_tokenizer(), attention_kernel=kernel)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def attention_is(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "latentwire_sdpa", function)
    assert ALL_ATTENTION_FUNCTIONS["latentwire_sdpa"] is function


OURS = AttentionInterface()["latentwire_sdpa"]


def forgets(module: Any, *args: Any, reading: Reading | None = None, **kwargs: Any) -> Any:
    """An attention that never heard of `reading`."""
    return sdpa_attention_forward(module, *args, **kwargs)


def forgets_and_drops_the_mask(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
    kwargs.pop("reading", None)
    return sdpa_attention_forward(module, q, k, v, None, is_causal=True, **kwargs)


def looks_ahead(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
    kwargs.pop("reading", None)
    return sdpa_attention_forward(module, q, k, v, None, is_causal=False, **kwargs)


def answers_as_prompt(module: Any, *args: Any, reading: Reading | None = None, **kwargs: Any) -> Any:
    """The bug of many a patched `is_causal`: what is bidirectional for the prompt is so for the answer."""
    if reading is not None and bool((reading.columns.blocks >= 0).any()):
        all_one = torch.zeros_like(reading.columns.blocks)
        reading = Reading(Columns.of(reading.columns.valid, reading.columns.positions, all_one))
    return OURS(module, *args, reading=reading, **kwargs)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (forgets, "gives NaN or infinity"),
        (forgets_and_drops_the_mask, "stays causal"),
        (looks_ahead, "attends to later tokens that its mask hides"),
        (answers_as_prompt, "attends to later tokens that its mask hides"),
    ],
)
def test_an_attention_that_does_not_follow_its_mask_is_refused(
    monkeypatch: pytest.MonkeyPatch, function: Any, said: str
) -> None:
    attention_is(monkeypatch, function)
    refused(tiny_model(), said)


def test_one_layer_that_ignores_its_mask_is_enough_to_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_layer(module: Any, *args: Any, **kwargs: Any) -> Any:
        return (looks_ahead if module.layer_idx == 2 else OURS)(module, *args, **kwargs)

    attention_is(monkeypatch, one_layer)
    refused(tiny_model(), "attends to later tokens that its mask hides")


@pytest.mark.parametrize("threads", [1, 2])
def test_rounding_is_not_taken_for_a_leak(threads: int) -> None:
    """Experts compute in groups whose sizes depend on all rows: not the same to the bit, and no leak."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed in range(3):
            tiny_lm("gpt_oss", seed=seed)
    finally:
        torch.set_num_threads(before)


def test_a_head_that_is_not_known_is_refused() -> None:
    model = tiny_model()
    plain = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        out.logits = out.logits.roll(1, -1)
        return out

    model.forward = shifted  # type: ignore[method-assign]
    refused(model, "computes its logits from the hidden states in a way that is not known here")


@pytest.mark.parametrize(
    ("family", "scaled"), [("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 3.0})]
)
def test_logits_are_scaled_as_the_model_scales_them(family: str, scaled: dict[str, float]) -> None:
    model = tiny_model(family, **scaled)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        want = model(input_ids=ids).logits[:, -1]
    lm = LM(model, tiny_tokenizer())
    torch.testing.assert_close(lm.prefill(Prefix.of_tokens(ids.tolist())).logits, want, atol=1e-5, rtol=0)
    labels = torch.tensor([[5, 9, 2]])
    forced = lm.forced(Prefix.of_tokens(ids.tolist()), labels)
    flat = Forced(forced.hidden[0], labels[0])
    wanted = torch.nn.functional.cross_entropy(lm.head(flat.hidden), flat.labels, reduction="sum")
    got = summed_nats(lm, flat)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)
    weight = lm.model.get_output_embeddings().weight
    ours, theirs = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (got, wanted))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    refused(model, "gives NaN or infinity")


# What `attention.refuse` says without running anything.


def test_soft_caps_are_refused_under_sdpa_and_take_eager_by_themselves() -> None:
    refused(tiny_model("gemma2"), "soft-caps .* use eager or flex", "sdpa")
    model = tiny_model("gemma2")
    model.set_attn_implementation("sdpa")
    assert attention.kernel(LM(model, tiny_tokenizer()).model) == "eager"
    assert attention.kernel(LM(tiny_model("gemma2"), tiny_tokenizer(), attention_kernel="eager").model) == "eager"


def test_kernels_that_cannot_take_our_masks_are_refused() -> None:
    refused(tiny_model(), "found 'flash_attention_2', expected sdpa, eager, flex or split", "flash_attention_2")


def test_kernels_that_a_model_does_not_have_are_refused() -> None:
    refused(tiny_model("gpt_oss"), "has no sdpa kernel", "sdpa")


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(vocab_size=320, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    refused(AutoModelForSeq2SeqLM.from_config(config), "encoder-decoder")


def test_layers_without_attention_are_refused() -> None:
    model = tiny_model("qwen3")
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    refused(model, "layers of type 'linear_attention'")


def test_position_biases_in_attention_scores_are_refused() -> None:
    model = tiny_model()
    model.config.alibi = True
    refused(model, "ALiBi")


def test_models_that_bypass_the_attention_interface_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    refused(model, "does not route attention through Transformers' interface")


def test_a_window_that_is_not_passed_to_the_attention_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(module: Any, *args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return OURS(module, *args, **kwargs)

    attention_is(monkeypatch, silent)
    refused(tiny_model("gemma3"), "slides its window without telling")


def test_a_window_of_all_layers_that_is_not_passed_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral has no `layer_types`: its configuration alone says that every layer slides."""

    def silent(module: Any, *args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return OURS(module, *args, **kwargs)

    attention_is(monkeypatch, silent)
    refused(tiny_model("mistral"), "slides its window without telling")


# What is accepted.


@pytest.mark.parametrize("family", [*FAMILIES, "llama_tied", "phi3", "smollm3", "glm"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_families_that_read_right_are_accepted(family: str, kernel: str) -> None:
    lm = tiny_lm(family, kernel=kernel)
    assert attention.kernel(lm.model) == kernel
    again = LM(lm.model, lm.tokenizer)  # with ours already in it
    assert attention.kernel(again.model) == kernel
    before = attention.install(lm.model)
    assert before == f"latentwire_{kernel}"
    attention.uninstall(lm.model, "sdpa")
    assert lm.model.config._attn_implementation == "sdpa"


def test_a_model_in_half_precision_is_accepted() -> None:
    for family in FAMILIES:
        LM(tiny_model(family).to(torch.bfloat16), tiny_tokenizer())


def test_a_model_that_later_stops_following_its_mask_gives_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should the attention function be exchanged behind our back, states are NaN and not a leak."""
    lm = tiny_lm()
    lm.model.set_attn_implementation("sdpa")
    rows = Prefix.of_tokens([numbers(6, 1)], [[CAUSAL] * 6])
    assert lm.prefill(rows).logits.isnan().all()
    assert "transformers" in sys.modules


# What is refused before any weights are read.


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (T5Config(vocab_size=320, d_model=8, num_layers=1, num_heads=1), r"found an encoder-decoder \(t5\)"),
        (
            BertConfig(vocab_size=320, hidden_size=8, num_attention_heads=1, architectures=["BertForMaskedLM"]),
            r"found an encoder \(BertForMaskedLM\) .* an encoder sees the tokens that it would have to predict",
        ),
    ],
)
def test_a_model_that_is_not_a_decoder_is_refused_by_its_kind(
    config: PreTrainedConfig, said: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        LM.load(tmp_path, device="cpu")
    assert "expected a decoder-only language model" in str(error.value)


def test_rounding_that_grows_through_a_deep_model_in_16_bits_is_no_reason_to_refuse_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 7B's two attention kernels differ in each layer's last bit; a million logits then differ by percents."""

    def rounds_otherwise(*args: Any, reading: Reading | None = None, **kwargs: Any) -> Any:
        read, *rest = OURS(*args, reading=reading, **kwargs)
        if reading is None:
            return (read, *rest)
        noise = torch.randn(read.shape[1:], generator=torch.Generator().manual_seed(0))  # alike in every row
        return (read * (1 + 0.04 * noise).to(read.dtype), *rest)

    attention_is(monkeypatch, rounds_otherwise)
    LM(tiny_model("qwen2").to(torch.bfloat16), tiny_tokenizer())

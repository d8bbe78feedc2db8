"""`with latentwire.blocks(...)` around plain Transformers calls."""

from __future__ import annotations

import gc
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

import latentwire
from latentwire import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.reading import LayerRange, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from tests.lm.test_masks import batch, close, packed, run
from tests.support.dense import columns_of, dense, numbers, stock
from tests.support.models import FAMILIES, tiny_lm, tiny_model, tiny_tokenizer

PROMPTS = [numbers(11, 1), numbers(7, 2)]
LENGTHS = [11, 7]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Ids and padding mask of `PROMPTS`."""
    width = max(LENGTHS)
    fill = [[0] * (width - n) for n in LENGTHS]
    ones = [[1] * n for n in LENGTHS]
    left = side == "left"
    ids = [f + p if left else p + f for p, f in zip(PROMPTS, fill, strict=True)]
    mask = [f + o if left else o + f for o, f in zip(ones, fill, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def generated(lm: LM, count: int, rows: list[int] | None = None) -> list[tuple[int, ...]]:
    """What `LM` says after `PROMPTS` read bidirectionally."""
    prefix = Prefix.of_tokens(PROMPTS, [[0] * n for n in LENGTHS])
    prefix = prefix if rows is None else prefix.select(torch.tensor(rows))
    how = Decoding(max_new_tokens=count, min_new_tokens=count)
    return [g.ids for g in lm.generate(lm.prefill(prefix), how)]


# Plain forwards.


@pytest.mark.parametrize("mask", ["prefix", "segments"])
@pytest.mark.parametrize("padding", ["right", "left"])
@torch.no_grad()
def test_a_forward_equals_the_dense_reference(lm: LM, mask: str, padding: str) -> None:
    ids, rows = batch(mask, padding)
    columns = columns_of(rows)
    reference = dense(stock(lm.model), ids, rows)
    model = tiny_model(lm.name)
    arguments: dict[str, Any] = {"attention_mask": columns.valid.long()}
    with latentwire.blocks(model, columns.blocks):
        close(model(ids, **arguments).logits, reference, columns.valid)
        close(model(ids, columns.valid.long()).logits, reference, columns.valid)  # the mask by position
        close(model(inputs_embeds=lm.embed(ids), **arguments).logits, reference, columns.valid)
        states = model.get_decoder()(ids, position_ids=columns.positions, **arguments).last_hidden_state
        close(lm.head(states), reference, columns.valid)
    if mask == "prefix":
        lengths = (columns.blocks == 0).sum(1)
        with latentwire.blocks(model, lengths):
            close(model(ids, **arguments).logits, reference, columns.valid)


@torch.no_grad()
def test_windows_follow_the_positions_that_the_model_rotates_by(lm: LM) -> None:
    """Padding in the middle of a row: columns without `position_ids`, and whatever they say with them."""
    ids, rows = batch("prefix", "gaps")
    columns = columns_of(rows)
    model, arguments = tiny_model(lm.name), {"attention_mask": columns.valid.long()}
    with latentwire.blocks(model, columns.blocks):
        counted = model(ids, position_ids=columns.positions, **arguments).logits
        by_column = model(ids, **arguments).logits
    close(counted, dense(stock(lm.model), ids, rows), columns.valid)
    for row in rows:
        row.positions = list(range(len(row.positions)))
    close(by_column, dense(stock(lm.model), ids, rows), columns.valid)


@torch.no_grad()
def test_a_layer_range_counts_both_ends(lm: LM) -> None:
    ids, rows = batch("prefix", "right")
    columns = columns_of(rows)
    model = tiny_model(lm.name)
    with latentwire.blocks(model, columns.blocks, layers=(1, 2)):
        ours = model(ids, attention_mask=columns.valid.long()).logits
    close(ours, run(lm, ids, rows, LayerRange(1, 3)), columns.valid)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(lm: LM) -> None:
    ids, rows = packed()
    columns = columns_of(rows)
    reference = run(lm, ids, rows)
    model = tiny_model(lm.name)
    with latentwire.blocks(model, columns.blocks, documents=columns.documents):
        ours = model(
            ids, attention_mask=columns.valid.long(), position_ids=columns.positions, use_cache=False
        ).logits
    close(ours, reference, columns.valid)
    # Told apart by positions that start anew, padding in the rows or not.
    with latentwire.blocks(model, columns.blocks):
        ours = model(
            ids, attention_mask=columns.valid.long(), position_ids=columns.positions, use_cache=False
        ).logits
    close(ours, reference, columns.valid)
    keep = columns.valid[0]
    flat, blocks, positions = ids[:1, keep], columns.blocks[:1, keep], columns.positions[:1, keep]
    for arguments in ({}, {"attention_mask": torch.ones_like(flat)}):
        with latentwire.blocks(model, blocks):
            ours = model(flat, position_ids=positions, use_cache=False, **arguments).logits
        close(ours, reference[:1, keep])


@torch.no_grad()
def test_a_cache_passed_by_hand_reads_on(lm: LM) -> None:
    ids, _ = padded("left")
    row = ids[:1]
    model = tiny_model(lm.name)
    with latentwire.blocks(model, [8]):
        whole = model(row).logits
        first = model(row[:, :8], use_cache=True)
        second = model(row[:, 8:], past_key_values=first.past_key_values, use_cache=True)
        later = torch.arange(20, 31)[None]  # the same distances at other positions
        third = model(row[:, :8], position_ids=later[:, :8], use_cache=True)
        fourth = model(
            row[:, 8:], position_ids=later[:, 8:], past_key_values=third.past_key_values, use_cache=True
        )
    close(torch.cat([first.logits, second.logits], 1), whole)
    close(torch.cat([third.logits, fourth.logits], 1), whole)


# Generation.


SHARING = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": [48] * 4,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 320,
    "num_kv_shared_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SPARSE = {"activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8}
GEMMAS = {
    "gemma3n_text": SHARING | SPARSE,
    "gemma4_text": SHARING | {"intermediate_size": 48, "global_head_dim": 8, "enable_moe_block": False},
}


@pytest.fixture(scope="module", params=GEMMAS)
def sharing(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model whose last layers read the keys and values of earlier ones."""
    if request.param not in CONFIG_MAPPING:
        pytest.skip(f"this Transformers has no {request.param}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[request.param](**GEMMAS[request.param])).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.15)
    return model


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("prompt", [0, 19])
def test_layers_that_share_keys_and_values_generate_with_a_cache_as_without(
    sharing: PreTrainedModel, prompt: int, padding: int
) -> None:
    ids = torch.tensor([[0] * padding + numbers(21, 1)])
    mask = torch.tensor([[0] * padding + [1] * 21])
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    with latentwire.blocks(sharing, [prompt]):
        cached = sharing.generate(ids, **how)
        whole = sharing.generate(ids, use_cache=False, **how)
    assert cached.tolist() == whole.tolist()
    plain = sharing.generate(ids, **how)
    if prompt == 0:
        assert cached.tolist() == plain.tolist(), "without a block, what plain Transformers says"
    else:
        with latentwire.blocks(sharing, [prompt]):
            ours = sharing(ids, attention_mask=mask).logits
        assert not torch.allclose(ours, sharing(ids, attention_mask=mask).logits), "the block is seen"


@pytest.mark.parametrize("how", ["dynamic", "static", "without"])
def test_generate_equals_ours(lm: LM, how: str) -> None:
    model = tiny_model(lm.name)
    ids, mask = padded("left")
    cache: dict[str, Any] = {
        "dynamic": {},
        "static": {"cache_implementation": "static"},
        "without": {"use_cache": False},
    }[how]
    if how == "static":
        cache["disable_compile"] = True
    count = 9
    with latentwire.blocks(model, LENGTHS):
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=count, min_new_tokens=count, **cache
        )
    assert [tuple(row) for row in out[:, ids.shape[1] :].tolist()] == generated(lm, count)
    causal = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=count, min_new_tokens=count)
    assert not torch.equal(causal, out), "the test would not notice a lost mask"


def test_beams_equal_beams_without_a_cache_and_one_row_at_a_time(lm: LM) -> None:
    """No cache means one full forward a step, which is tested above."""
    model = tiny_model(lm.name)
    ids, mask = padded("left")
    fixed: dict[str, Any] = {"num_beams": 3, "do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    with latentwire.blocks(model, LENGTHS):
        cached = model.generate(ids, attention_mask=mask, num_return_sequences=2, **fixed)
        whole = model.generate(ids, attention_mask=mask, num_return_sequences=2, use_cache=False, **fixed)
    assert torch.equal(cached, whole)
    for n in range(2):
        with latentwire.blocks(model, LENGTHS[n : n + 1]):
            alone = model.generate(torch.tensor([PROMPTS[n]]), **fixed)
        assert alone[0, LENGTHS[n] :].tolist() == cached[2 * n, ids.shape[1] :].tolist()


def test_several_samples_a_row_keep_the_prompt_of_their_row(lm: LM) -> None:
    model = tiny_model(lm.name)
    ids, mask = padded("left")
    with latentwire.blocks(model, LENGTHS):
        out = model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=5,
            min_new_tokens=5,
        )  # fmt: skip
    assert [tuple(row) for row in out[:, ids.shape[1] :].tolist()] == generated(lm, 5, [0, 0, 1, 1])


@pytest.mark.parametrize("kind", ["prompt lookup", "assistant"])
def test_speculation_says_the_same(lm: LM, kind: str) -> None:
    model = tiny_model(lm.name)
    ids = torch.tensor([PROMPTS[1] + PROMPTS[1][:3]])
    options: dict[str, Any] = (
        {"prompt_lookup_num_tokens": 3} if kind == "prompt lookup" else {"assistant_model": tiny_model(seed=3)}
    )
    fixed: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    with latentwire.blocks(model, [10]):
        plain = model.generate(ids, **fixed)
        assert torch.equal(model.generate(ids, **fixed, **options), plain)
    prefix = Prefix.of_tokens(ids.tolist(), [[0] * 10])
    ours = lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=8, min_new_tokens=8))[0].ids
    assert tuple(plain[0, 10:].tolist()) == ours


# Wrapped models.


@torch.no_grad()
def test_a_lora_wrapped_model_reads_the_same_mask() -> None:
    def with_adapter() -> Any:
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
        return peft.get_peft_model(tiny_model(), config).eval()

    wrapped = with_adapter()
    ids, rows = batch("prefix", "left")
    columns = columns_of(rows)
    with latentwire.blocks(wrapped, columns.blocks):
        ours = wrapped(input_ids=ids, attention_mask=columns.valid.long()).logits
        made = wrapped.generate(input_ids=ids, attention_mask=columns.valid.long(), max_new_tokens=3)
    merged = with_adapter().merge_and_unload()
    close(ours, dense(stock(merged), ids, rows), columns.valid)
    assert (ours - dense(stock(tiny_model()), ids, rows))[columns.valid].abs().max() > 1e-2
    assert made.shape[1] > ids.shape[1]
    assert merged.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_learned_prompts_which_would_shift_the_blocks_are_refused(kind: Any) -> None:
    wrapped: Any = peft.get_peft_model(tiny_model(), kind(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    refused("virtual tokens would shift the blocks", wrapped, [6], lambda: None)


# Nothing is left behind.


def untouched(model: PreTrainedModel, before: Tensor, ids: Tensor) -> None:
    assert model.config._attn_implementation == "sdpa"
    for module in (model, model.get_decoder()):
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert not {"forward", "create_masks_for_generate"} & vars(model).keys()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("gradient", [False, True])
def test_nothing_is_left_behind(lm: LM, gradient: bool) -> None:
    model, (ids, mask) = tiny_model(lm.name), padded("left")
    with torch.no_grad():
        before = model(ids).logits
    with torch.set_grad_enabled(gradient), latentwire.blocks(model, LENGTHS):
        inside = model(ids, attention_mask=mask).logits
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
    assert not torch.allclose(inside[0], before[0], atol=1e-2)
    untouched(model, before, ids)


@pytest.mark.parametrize("when", ["outside a forward", "in a forward", "in generate"])
def test_nothing_is_left_behind_by_an_exception(when: str) -> None:
    model, (ids, mask) = tiny_model(), padded("left")
    with torch.no_grad():
        before = model(ids).logits

    def fails() -> None:
        model(ids, attention_mask=mask)
        if when == "in a forward":
            model(ids + 10_000)
        if when == "in generate":
            model.generate(ids + 10_000)
        raise RuntimeError("the caller's own")

    with pytest.raises((RuntimeError, IndexError)) as error, latentwire.blocks(model, LENGTHS):
        fails()
    assert error.value is not None
    untouched(model, before, ids)


def test_a_graph_that_is_still_needed_is_waited_for_and_then_nothing_is_left() -> None:
    """Checkpointed layers run anew in the backward pass and look their attention function up again."""
    model, (ids, _) = tiny_model(), padded("left")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.no_grad():
        before = model(ids).logits
    model.train()
    with latentwire.blocks(model, LENGTHS):
        loss = model(ids, labels=ids, use_cache=False).loss
    with latentwire.blocks(model, [3, 3]), torch.no_grad():
        model(ids)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, before)
    model.train()
    loss.backward()
    del loss
    gc.collect()
    untouched(model.eval(), before, ids)


@torch.no_grad()
def test_of_two_blocks_the_inner_one_counts() -> None:
    model, (ids, _) = tiny_model(), padded("left")
    with latentwire.blocks(model, [3, 3]):
        outer = model(ids).logits
    with latentwire.blocks(model, [9, 5]):
        inner = model(ids).logits
    with latentwire.blocks(model, [3, 3]):
        with latentwire.blocks(model, [9, 5]):
            assert torch.equal(model(ids).logits, inner)
        assert torch.equal(model(ids).logits, outer)
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_an_lm_and_its_model_in_a_block_do_not_disturb_each_other(lm: LM) -> None:
    ids, rows = batch("segments", "right")
    before = run(lm, ids, rows)
    with latentwire.blocks(lm.model, [5, 5, 5]):
        assert torch.equal(run(lm, ids, rows), before)
    assert lm.model.config._attn_implementation == "latentwire_sdpa"
    assert torch.equal(run(lm, ids, rows), before)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_without_a_reading_a_model_with_our_attention_is_stock_to_the_bit(lm: LM, kernel: str) -> None:
    plain, ours = tiny_model(lm.name), tiny_model(lm.name)
    plain.set_attn_implementation(kernel)
    LM(ours, tiny_tokenizer(), attention_kernel=kernel)
    ids, mask = padded("left")
    for arguments in ({}, {"attention_mask": mask}, {"labels": ids}):
        left, right = plain(ids, **arguments), ours(ids, **arguments)
        assert torch.equal(left.logits, right.logits)
        for model, out in ((plain, left), (ours, right)):
            model.zero_grad()
            out.logits.square().mean().backward()
        for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    fixed: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 5, "num_beams": 2}
    assert torch.equal(plain.generate(ids, **fixed), ours.generate(ids, **fixed))


# What is refused.


def refused(match: str, model: Any, prompt: Any, call: Any) -> None:
    with pytest.raises(UserError, match=match) as error, latentwire.blocks(model, prompt):
        call()
    assert "\n" not in str(error.value)
    if isinstance(model, PreTrainedModel):
        assert model.config._attn_implementation == "sdpa"


def test_what_would_be_wrong_is_refused() -> None:
    model, (ids, mask) = tiny_model(), padded("left")
    refused("prefill_chunk_size", model, LENGTHS, lambda: model.generate(
        ids, attention_mask=mask, prefill_chunk_size=4, max_new_tokens=2))  # fmt: skip
    columns = torch.zeros(2, 11, dtype=torch.long)
    refused("prefill_chunk_size", model, columns, lambda: model(ids[:, :4]))
    refused("prefill_chunk_size", model, columns, lambda: model.generate(
        ids, attention_mask=mask, prefill_chunk_size=4, max_new_tokens=2))  # fmt: skip
    refused("found 3 rows, expected the model's 2", model, [3, 3, 3], lambda: model(ids))
    refused("ready-made attention mask", model, LENGTHS, lambda: model(ids, attention_mask=mask[:, None, None]))
    refused("3 dimensions", model, torch.zeros(1, 2, 3), lambda: None)
    refused("found Linear, expected a Transformers model", nn.Linear(2, 2), [1], lambda: None)
    refused("found 0 rows", model, [], lambda: model(ids))


def test_a_model_that_ignores_its_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, _) = tiny_model(), padded("left")
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "reading": None}), with_kwargs=True
        )
    refused("does not ask for its mask", model, LENGTHS, lambda: model(ids))


@torch.no_grad()
def test_a_reading_is_a_keyword_like_any_other() -> None:
    """A model with our attention obeys `reading=` in its own forward, without LM or `blocks`."""
    lm = tiny_lm()
    ids, rows = batch("prefix", "left")
    columns = columns_of(rows)
    ours = lm.model(ids, position_ids=columns.positions, reading=Reading(columns), use_cache=False).logits
    close(ours, dense(stock(lm.model), ids, rows), columns.valid)

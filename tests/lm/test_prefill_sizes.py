"""A prefix padded to a size that recurs gives what it gives as it comes; without a GPU nothing is captured."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from latentwire import UserError
from latentwire.bench.wire_operations import Operations
from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.reading import Columns, LayerRange, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefilling import bucket, graphs
from latentwire.lm.prefilling.prefill_sizes import LEAST, rounded_up
from latentwire.lm.prefix import Prefilled, Prefix
from tests.lm.test_masks import MASKS, PADDINGS, batch, close
from tests.lm.test_memory import after
from tests.support.dense import columns_of, numbers
from tests.support.models import FAMILIES, tiny_lm

ROWS = [numbers(14, 1), numbers(9, 2), numbers(11, 3)]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


@contextmanager
def padded(lm: LM) -> Iterator[None]:
    lm.prefill_graphs.mode = "padded"
    try:
        yield
        assert lm.prefill_graphs.refused is None
        assert lm.prefill_graphs._sizes
    finally:
        lm.prefill_graphs.mode = "off"


def same(lm: LM, prefix: Prefix) -> Prefilled:
    """Checks what a padded prefill says and keeps against the one that reads the prefix as it comes."""
    wanted = lm.prefill(prefix)
    with padded(lm):
        made = lm.prefill(prefix)
    assert made.logits.shape == wanted.logits.shape
    close(made.logits, wanted.logits)
    real = prefix.columns.valid
    for ours, theirs in zip(made.cache.layers, wanted.cache.layers, strict=True):
        for mine, its in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert mine.shape == its.shape  # type: ignore[union-attr]
            close(mine.transpose(1, 2)[real], its.transpose(1, 2)[real])  # type: ignore[union-attr]
    assert torch.equal(made.next_position, wanted.next_position)
    return made


@pytest.mark.parametrize("layers", [None, LayerRange(1, 2)], ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", MASKS)
def test_any_mask_and_padding(lm: LM, mask: str, padding: str, layers: LayerRange | None) -> None:
    ids, rows = batch(mask, padding)
    same(lm, Prefix(ids=ids, columns=columns_of(rows), layers=layers))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_plain_text_of_any_length_and_batch(lm: LM, count: int, length: int) -> None:
    same(lm, Prefix.of_tokens([numbers(max(1, length - 3 * n), n) for n in range(count)]))


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_latents_before_a_question(lm: LM, mask: str) -> None:
    prefix = after(lm, mask)
    same(lm, prefix)
    same(lm, prefix.select(torch.tensor([1])))


def test_soft_tokens(lm: LM) -> None:
    text = Prefix.of_tokens(ROWS, [[0] * 6 + [-1] * (len(row) - 6) for row in ROWS])
    assert text.ids is not None
    same(lm, replace(text, ids=None, embeddings=lm.embed(text.ids)))


def test_what_follows_a_padded_prefill_is_the_same(lm: LM) -> None:
    how, ahead = Decoding(max_new_tokens=9, min_new_tokens=9), [[numbers(4, 5), numbers(2, 6)]] * 3
    for prefix in (Prefix.of_tokens(ROWS), after(lm, "prefix")):
        wanted = lm.prefill(prefix)
        made = same(lm, prefix)
        assert lm.generate(made, how) == lm.generate(wanted, how)
        pairs = zip(lm.score(made, ahead), lm.score(wanted, ahead), strict=True)
        assert all(
            mine.logprob == pytest.approx(its.logprob, abs=1e-4)
            for ours, theirs in pairs
            for mine, its in zip(ours, theirs, strict=True)
        )


def test_nothing_is_left_of_an_earlier_prefix(lm: LM) -> None:
    long, short = Prefix.of_tokens([numbers(16, 1)] * 3), Prefix.of_tokens([numbers(5, 2)] * 3)
    whole = after(lm, "prefix")
    assert whole.memory is not None
    broken = replace(whole.memory, values=tuple(torch.full_like(each, torch.nan) for each in whole.memory.values))
    with padded(lm):
        first = lm.prefill(long)
        kept = [first.logits.clone(), *(layer.keys.clone() for layer in first.cache.layers)]  # type: ignore[union-attr]
        lm.prefill(short)
        lm.prefill(replace(whole, memory=broken))
    now = [first.logits, *(layer.keys for layer in first.cache.layers)]
    assert all(torch.equal(one, other) for one, other in zip(kept, now, strict=True))  # type: ignore[arg-type]
    same(lm, short)
    same(lm, whole.select(torch.tensor([1])))
    same(lm, whole)


def test_sizes_are_few_and_near() -> None:
    sizes = {rounded_up(columns) for columns in range(1, 4097)}
    assert len(sizes) < 32
    assert all(columns <= rounded_up(columns) < max(columns + LEAST, 1.25 * columns) for columns in range(1, 4097))
    assert all(rounded_up(size) == size and size % LEAST == 0 for size in sizes)


def test_the_same_size_serves_many_prefixes() -> None:
    lm = tiny_lm()
    with padded(lm):
        for length in range(1, 17):
            lm.prefill(Prefix.of_tokens([numbers(length, length)] * 3))
        assert len(lm.prefill_graphs._sizes) == 1


def test_few_sizes_and_bytes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    prefixes = [Prefix.of_tokens([numbers(20, 1)] * rows) for rows in (1, 2, 3, 4, 6)]
    monkeypatch.setattr(graphs, "MOST_SIZES", 2)
    with padded(lm):
        for prefix in (*prefixes, prefixes[-2], prefixes[0]):
            lm.prefill(prefix)
        assert [size.rows for size in lm.prefill_graphs._sizes] == [4, 1]
        monkeypatch.setattr(graphs, "MOST_BYTES", 1)
        lm.prefill(prefixes[1])
        assert [size.rows for size in lm.prefill_graphs._sizes] == [2]
        lm.prefill_graphs.release()
        lm.prefill(prefixes[1])


def test_what_does_not_fit_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    lm.prefill_graphs.mode = "padded"
    whole = after(lm, "prefix")
    memory = whole.memory
    assert memory is not None
    seen = tuple(torch.ones(each.shape[:3], dtype=torch.bool) for each in memory.keys)
    lm.prefill_graphs.release()
    lm.prefill(replace(whole, memory=replace(memory, heads=seen)))
    with torch.autocast("cpu", torch.bfloat16):
        lm.prefill(Prefix.of_tokens(ROWS))
    monkeypatch.setattr(graphs, "operations", lambda device: 0.0)
    lm.model.register_buffer("other", torch.zeros(1))  # looked at again
    lm.prefill(Prefix.of_tokens(ROWS))
    assert not lm.prefill_graphs._sizes
    assert lm.prefill_graphs.refused is None


def test_a_kernel_that_plans_on_the_host_is_refused() -> None:
    lm = tiny_lm(kernel="split")
    lm.prefill_graphs.mode = "padded"
    lm.prefill(Prefix.of_tokens(ROWS))
    assert "split" in str(lm.prefill_graphs.refused)
    assert not lm.prefill_graphs._sizes


def test_a_pass_that_fails_is_said_once_and_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, prefix = tiny_lm(), Prefix.of_tokens(ROWS)
    wanted = lm.prefill(prefix)

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("a cache of another kind\nis needed")

    monkeypatch.setattr(bucket.KeptLayers, "update", failing)
    lm.prefill_graphs.mode = "padded"
    with pytest.warns(UserWarning, match="a cache of another kind$"):
        made = lm.prefill(prefix)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.prefill(prefix)
    assert torch.equal(made.logits, wanted.logits)
    assert lm.prefill_graphs.refused == "RuntimeError: a cache of another kind"


def test_errors_of_users_stay_theirs() -> None:
    lm = tiny_lm()
    lm.prefill_graphs.mode = "padded"
    with pytest.raises(UserError, match="found 200 tokens"):
        lm.prefill(Prefix.of_tokens([numbers(200, 1)]))


def test_a_changed_model_is_looked_at_again() -> None:
    lm, prefix = tiny_lm(), Prefix.of_tokens(ROWS)
    with padded(lm):
        before = lm.prefill(prefix).logits
        [first] = lm.prefill_graphs._sizes.values()
        weight = lm.embeddings()
        weight.data = weight.data.flip(0).clone()
        changed = lm.prefill(prefix).logits
        [second] = lm.prefill_graphs._sizes.values()
    assert first is not second
    assert not torch.equal(before, changed)
    close(changed, lm.prefill(prefix).logits)


def test_the_state_sees_hooks_modules_and_kernels() -> None:
    lm = tiny_lm()
    model: Any = lm.model
    states = [graphs.state_of(model), graphs.state_of(model)]
    assert states[0] == states[1]
    hook = model.model.layers[1].register_forward_hook(lambda *_: None)
    states.append(graphs.state_of(model))
    hook.remove()
    assert graphs.state_of(model) == states[0]
    model.model.norm.forward = lambda states: states
    states.append(graphs.state_of(model))
    del model.model.norm.forward
    model.model.layers[0].mlp = torch.nn.Identity()
    states.append(graphs.state_of(model))
    assert len({*states}) == 4


@pytest.mark.parametrize("family", ["llama", "ministral3"])
def test_a_prefill_launches_no_more_than_transformers_does(family: str) -> None:
    def launched(layers: int) -> tuple[int, int]:
        lm = tiny_lm(family, num_hidden_layers=layers, sliding_window=None)
        prefix = Prefix.of_tokens(ROWS[:1])
        lm.prefill(prefix)
        with Operations() as ours:
            lm.prefill(prefix)
        lm.model.set_attn_implementation("sdpa")
        with Operations() as theirs, torch.no_grad():
            lm.model(input_ids=prefix.ids, use_cache=True, logits_to_keep=1)
        return ours.total, theirs.total

    (ours, theirs), (more, most) = launched(2), launched(6)
    assert more - ours <= most - theirs


def test_latents_launch_few_operations_outside_the_pass() -> None:
    """What a graph does not take over does not grow with the layers."""

    def outside(layers: int) -> int:
        lm = tiny_lm(num_hidden_layers=layers)
        text = lm.prefill(Prefix.of_tokens(ROWS[:1]))
        keys, values = zip(*((layer.keys, layer.values) for layer in text.cache.layers), strict=True)  # type: ignore[union-attr]
        question = Prefix.of_tokens(ROWS[1:2])
        columns = question.columns
        moved = Columns.of(columns.valid, columns.positions + 14)
        prefix = replace(question, columns=moved, memory=Memory(keys, values, text.reading.columns), plain=False)
        lm.prefill_graphs.mode = "padded"
        lm.prefill(prefix)
        bucket_of = next(iter(lm.prefill_graphs._sizes.values()))
        out = bucket_of.run()
        bucket_of.run = lambda: out  # type: ignore[method-assign]
        with Operations() as found:
            lm.prefill(prefix)
        return found.total

    assert outside(2) == outside(5) < 80

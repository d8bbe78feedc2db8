"""Rows that a CPU reads a few at a time come out as those that it reads together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from latentwire.lm import row_parts
from latentwire.lm.decoding import Decoding
from latentwire.lm.loading.prefix_tuning import PrefixTuning
from latentwire.lm.masks.reading import Columns, Memory, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefilled, Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm

ROWS = [numbers(length, seed) for seed, length in enumerate([9, 5, 12, 3, 7])]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


def prefix(lm: LM, kind: str) -> Prefix:
    if kind == "tokens":
        return Prefix.of_tokens(ROWS)
    if kind == "blocks":
        return Prefix.of_tokens(ROWS, [[0] * len(row) for row in ROWS])
    ids = Prefix.of_tokens(ROWS)
    _, read = lm.memorize(Prefix.of_tokens([numbers(4, 9 + n) for n in range(len(ROWS))]))
    seen = torch.arange(4)[None] < torch.tensor([[4], [2], [3], [1], [4]])
    memory = Memory(read.keys, read.values, Columns.of(seen, read.columns.positions))
    return replace(
        ids, columns=replace(ids.columns, positions=ids.columns.positions + 4), memory=memory, plain=False
    )


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [1, 25, 40])
@pytest.mark.parametrize("kind", ["tokens", "blocks", "memory"])
def test_a_prefill_in_parts_is_the_prefill(
    lm: LM, kind: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> Prefilled:
        return lm.prefill(prefix(lm, kind))

    whole = read()
    monkeypatch.setattr(row_parts, "COLUMNS", columns)
    parts = read()
    close(parts.logits, whole.logits)
    for mine, its in zip(parts.cache.layers, whole.cache.layers, strict=True):
        real = whole.reading.columns.valid[:, None, :, None]
        close(mine.keys * real, its.keys * real)
        close(mine.values * real, its.values * real)
    how = Decoding(max_new_tokens=5)
    assert lm.generate(parts, how) == lm.generate(whole, how)


def test_keys_and_values_in_parts_are_those_of_one_pass(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    for states in (True, False):
        monkeypatch.setattr(row_parts, "COLUMNS", 10_000)
        with torch.no_grad():
            hidden, whole = lm.memorize(Prefix.of_tokens(ROWS), states=states)
            monkeypatch.setattr(row_parts, "COLUMNS", 25)
            others, parts = lm.memorize(Prefix.of_tokens(ROWS), states=states)
        close(others, hidden)
        for mine, its in zip((*parts.keys, *parts.values), (*whole.keys, *whole.values), strict=True):
            close(mine, its)


def test_a_learned_prefix_comes_before_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    lm.prefix_tuning = PrefixTuning(torch.randn(2, 2 * 3 * 2 * 8), layers=3, heads=2)
    whole = lm.prefill(Prefix.of_tokens(ROWS)).logits
    monkeypatch.setattr(row_parts, "COLUMNS", 25)
    close(lm.prefill(Prefix.of_tokens(ROWS)).logits, whole)


def test_no_more_columns_than_that_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_parts, "COLUMNS", 25)
    lm, read = tiny_lm("llama"), []
    rows = Prefix.of_tokens(ROWS)
    honest = lm.model.model.norm.forward
    monkeypatch.setattr(
        lm.model.model.norm, "forward", lambda states: read.append(states.shape[:2]) or honest(states)
    )
    lm.prefill(rows)
    assert sum(count for count, _ in read) == len(ROWS)
    assert max(count * width for count, width in read) <= 25
    read.clear()
    lm.forced(rows, torch.ones(len(ROWS), 1, dtype=torch.long))  # gradients flow through all rows together
    assert len(read) == 1


def test_a_hook_sees_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_parts, "COLUMNS", 25)
    lm, seen = tiny_lm("llama"), []
    lm.model.model.layers[1].register_forward_hook(lambda module, given, made: seen.append(len(given[0])))
    lm.prefill(Prefix.of_tokens(ROWS))
    assert seen == [len(ROWS)]


@pytest.mark.parametrize("gradients", [True, False])
def test_a_pass_for_keys_and_values_ends_with_the_last_of_them(lm: LM, gradients: bool) -> None:
    """And gives the same ones; with gradients it is read to the end."""
    with torch.set_grad_enabled(gradients):
        hidden, whole = lm.memorize(Prefix.of_tokens(ROWS))
        nothing, short = lm.memorize(Prefix.of_tokens(ROWS), states=False)
    assert nothing.shape[-1] == (hidden.shape[-1] if gradients else 0)
    for mine, its in zip((*short.keys, *short.values), (*whole.keys, *whole.values), strict=True):
        assert torch.equal(mine, its)


def test_whoever_waits_for_a_layer_gets_it() -> None:
    lm, seen = tiny_lm("llama"), []
    assert lm.rotary  # it tries the model once
    lm.model.model.layers[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        hidden, _ = lm.memorize(Prefix.of_tokens(ROWS), states=False)
    assert len(seen) == 1
    assert hidden.shape[-1] == 32


def test_rows_are_read_together_for_whoever_compares_them_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit looks for states that differ at all: rows of two parts differed by rounding, "a leak"."""
    monkeypatch.setattr(row_parts, "COLUMNS", 8)
    lm = tiny_lm("llama")
    rows = torch.zeros(4, 8, dtype=torch.long)
    reading = Reading(Columns.of(torch.ones(4, 8, dtype=torch.bool), torch.arange(8).expand(4, -1)))
    with torch.no_grad():
        assert len(row_parts.parts(lm.model, rows, reading, None)) == 4
        with row_parts.together():
            assert len(row_parts.parts(lm.model, rows, reading, None)) == 1
        assert len(row_parts.parts(lm.model, rows, reading, None)) == 4

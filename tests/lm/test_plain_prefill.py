"""A plain causal prefill takes the kernel's own causal mask where that is right, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from latentwire.lm.masks.reading import Columns
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefilled, Prefix, pad_rows
from latentwire.lm.prompts import CAUSAL
from tests.support.dense import numbers
from tests.support.models import FAMILIES, WINDOW, tiny_lm, tiny_model, tiny_tokenizer

ROWS = [numbers(14, 1), numbers(9, 2), numbers(11, 3)]
LAYERS = 3


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Per attention computed, whether it had a mask of ours; without one it must have been told to be causal."""
    seen: list[bool] = []
    real = functional.scaled_dot_product_attention

    def watched(*args: Any, attn_mask: Tensor | None = None, is_causal: bool = False, **kwargs: Any) -> Tensor:
        seen.append(attn_mask is not None)
        assert is_causal == (attn_mask is None and args[0].shape[2] > 1)
        return real(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    return seen


def same(lm: LM, prefix: Prefix, made: Prefilled) -> None:
    """Logits, keys and values of real columns are those under the dense mask."""
    want = lm.prefill(replace(prefix, plain=False))
    torch.testing.assert_close(made.logits, want.logits, atol=1e-5, rtol=0)
    real = prefix.columns.valid
    layers: Any = zip(made.cache.layers, want.cache.layers, strict=True)
    for ours, theirs in layers:
        for mine, its in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            torch.testing.assert_close(mine.transpose(1, 2)[real], its.transpose(1, 2)[real], atol=1e-5, rtol=0)
    ahead = [[numbers(4, 5), numbers(2, 6)]] * made.rows
    scores = zip(lm.score(made, ahead), lm.score(want, ahead), strict=True)
    for mine, its in ((a.logprob, b.logprob) for one, other in scores for a, b in zip(one, other, strict=True)):
        assert mine == pytest.approx(its, abs=1e-4)
    assert [each.ids for each in lm.generate(made)] == [each.ids for each in lm.generate(want)]


MASKED = {"mistral": LAYERS, "ministral3": LAYERS, "gemma3": 2}
"""Layers whose window is shorter than the rows."""


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_without_a_shorter_window_need_no_mask(family: str, masks: list[bool]) -> None:
    lm = tiny_lm(family)
    prefix = Prefix.of_tokens(ROWS)
    masks.clear()
    made = lm.prefill(prefix)
    assert sum(masks) == MASKED.get(family, 0)
    assert len(masks) == LAYERS
    same(lm, prefix, made)


@pytest.mark.parametrize(("width", "masked"), [(WINDOW - 1, 0), (WINDOW, 0), (WINDOW + 1, LAYERS)])
def test_a_window_counts_once_a_row_is_longer(width: int, masked: int, masks: list[bool]) -> None:
    lm = tiny_lm("mistral")
    prefix = Prefix.of_tokens([numbers(width, 1), numbers(2, 2)])
    masks.clear()
    made = lm.prefill(prefix)
    assert sum(masks) == masked
    same(lm, prefix, made)


def test_soft_caps_are_read_as_before() -> None:
    lm = LM(tiny_model("gemma2"), tiny_tokenizer(), attention_kernel="eager")
    prefix = Prefix.of_tokens(ROWS)
    same(lm, prefix, lm.prefill(prefix))


def test_blocks_that_are_all_causal_are_plain_and_rows_stay_so() -> None:
    prefix = Prefix.of_tokens(ROWS, [[CAUSAL] * len(row) for row in ROWS])
    assert prefix.plain
    assert prefix.select(torch.tensor([1, 1, 0])).plain
    assert prefix.select(torch.tensor([1])).trimmed().plain
    assert Prefix.join([prefix, Prefix.of_tokens([numbers(20, 4)])]).plain
    blocks = Prefix.of_tokens(ROWS, [[CAUSAL] * 13 + [0], [CAUSAL] * 9, [CAUSAL] * 11])
    assert not blocks.plain
    assert not Prefix.join([prefix, blocks]).plain


def blocks(lm: LM) -> object:
    return lm.prefill(Prefix.of_tokens(ROWS, [[0] * 5 + [CAUSAL] * (len(row) - 5) for row in ROWS]))


def left_padding(lm: LM) -> object:
    ids = pad_rows([row[::-1] for row in ROWS], 0).flip(1)
    valid = ids != 0
    return lm.prefill(Prefix(ids=ids, columns=Columns.of(valid, (valid.cumsum(1) - 1).clamp_min(0))))


def memory(lm: LM) -> object:
    _, before = lm.memorize(Prefix.of_tokens([numbers(4, 7)] * 3))
    own = Prefix.of_tokens(ROWS)
    after = replace(own.columns, positions=own.columns.positions + 4)
    return lm.prefill(replace(own, columns=after, memory=before))


def behind_a_prefill(lm: LM) -> object:
    made = lm.prefill(Prefix.of_tokens(ROWS, [[0] * len(row) for row in ROWS]))
    ids = pad_rows(ROWS, 0)
    return lm.read_on(made, ids, Columns.of(ids != 0, made.next_position[:, None] + torch.arange(14)))


def teacher_forcing(lm: LM) -> object:
    return lm.forced(Prefix.of_tokens(ROWS), pad_rows([[5, 6, 7]] * 3, -100))


def memorizing(lm: LM) -> object:
    return lm.memorize(Prefix.of_tokens(ROWS))


@pytest.mark.parametrize(
    "read",
    [blocks, left_padding, memory, behind_a_prefill, teacher_forcing, memorizing],
    ids=lambda read: read.__name__,
)
def test_whatever_else_is_read_keeps_its_mask(read: Any, masks: list[bool]) -> None:
    lm = tiny_lm()
    assert lm.rotary  # its probe runs the stock model
    masks.clear()
    read(lm)
    assert masks
    assert all(masks)


def test_a_prefill_read_on_has_its_mask_again(masks: list[bool]) -> None:
    lm = tiny_lm()
    made = lm.prefill(Prefix.of_tokens(ROWS))
    assert made.reading.plain
    ids = pad_rows(ROWS, 0)
    masks.clear()
    again = lm.read_on(made, ids, Columns.of(ids != 0, made.next_position[:, None] + torch.arange(14)))
    assert all(masks)
    assert not again.reading.plain

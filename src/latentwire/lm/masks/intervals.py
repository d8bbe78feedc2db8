"""A mask of packed documents as one interval of keys per query.

Where documents and blocks are contiguous, what a query sees is `start <= key < stop`: from the first column of its
document to the end of its block, or to itself. Both training kernels live on that: FlexAttention's mask reads two
numbers a query, and variable-length flash attention needs only the boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.lm.masks.reading import SHARED, Columns, Reading
from latentwire.lm.prompts import CAUSAL


@dataclass(frozen=True, eq=False)
class Intervals:
    """Of each column, `(B, T)`, on the CPU.

    start: first column of its document. stop: column after its block; its own plus one where it is causal.
    inside: whether it stands in a block. Padding is a document of its own: it sees itself, so that a softmax over
    nothing never happens, and nobody sees it.
    """

    start: Tensor
    stop: Tensor
    inside: Tensor

    def limits(self, both_ways: bool, window: int | None) -> tuple[Tensor, Tensor]:
        """`start` and `stop` `(B, T)` of what each column sees, within a sliding window of `window` positions."""
        at = torch.arange(self.start.shape[1])
        stop = self.stop if both_ways else (at + 1).expand_as(self.stop)
        if window is None:
            return self.start, stop
        return torch.maximum(self.start, at - window + 1), torch.minimum(stop, at + window)


def intervals(reading: Reading) -> Intervals | None:
    """The intervals of a reading, computed once; None where its mask is not made of intervals (see `find`)."""
    return reading.once(("intervals",), lambda: find(reading.columns))


def find(columns: Columns) -> Intervals | None:
    """The intervals of packed rows; None if positions do not rise by one from column to column inside a document,
    or a document or a block stands in two places, or a row mixes shared columns with documents."""
    parts = (columns.valid.long(), columns.positions, columns.blocks, columns.documents)
    valid, positions, blocks, documents = torch.stack(parts).cpu()  # one wait for the device, not four
    real = valid.bool()
    blocks = torch.where(real, blocks, CAUSAL)
    inside = blocks != CAUSAL
    at = torch.arange(columns.width).expand_as(positions)
    edge = _changes(documents) | _changes(valid)
    block_edge = edge | _changes(blocks)
    steps = torch.diff(positions, prepend=positions[:, :1] - 1) == 1
    row = torch.arange(len(positions))[:, None].expand_as(positions)
    mixed = ((documents == SHARED) & real).any(1) & ((documents != SHARED) & real).any(1)
    if (
        not bool((steps | edge | ~real).all())
        or bool(mixed.any())
        or _twice(torch.stack([row, documents], -1)[edge & real])
        or _twice(torch.stack([row, documents, blocks], -1)[block_edge & inside])
    ):
        return None
    start = torch.where(edge, at, 0).cummax(1).values
    later = torch.where(block_edge, at, columns.width)[:, 1:]
    later = torch.nn.functional.pad(later, (0, 1), value=columns.width)
    following = later.flip(1).cummin(1).values.flip(1)
    return Intervals(start, torch.where(inside, following, at + 1), inside)


def _changes(of: Tensor) -> Tensor:
    """`(B, T)`: where a value differs from the one before it; true in the first column."""
    return torch.nn.functional.pad(of[:, 1:] != of[:, :-1], (1, 0), value=True)


def _twice(keys: Tensor) -> bool:
    return len(torch.unique(keys, dim=0)) < len(keys)

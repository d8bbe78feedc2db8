"""Prompts longer than the model: their beginning is cut off, as lm-eval's `hf` model cuts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from latentwire.errors import UserError
from latentwire.lm.prefix import Prefix

Piece = tuple[Prefix, list[int], list[list[int]]]
"""Rows of a batch, their indices in it, and for each row the indices of the continuations scored there."""


def cut(prefix: Prefix, kept: int) -> Prefix:
    """The last `kept` tokens of a prefix of one row, at positions from 0."""
    assert prefix.ids is not None
    valid = prefix.columns.valid[0]
    ids, blocks = prefix.ids[0][valid].tolist(), prefix.columns.blocks[0][valid].tolist()
    return Prefix.of_tokens(
        [ids[-kept:]], [blocks[-kept:]], device=valid.device, layers=prefix.layers, leaky=prefix.leaky
    )


def fitting(
    prefix: Prefix, continuations: Sequence[Sequence[list[int]]], most: int, on_cut: Callable[[], None]
) -> Iterator[Piece]:
    """A batch in pieces that the model can read with their continuations; in one piece if all of it fits.

    A prompt is cut for each continuation apart, as far as that one needs.

    Args:
        continuations: of each row, as token ids.
        most: positions of the model.
        on_cut: called once for each prompt and continuation that is cut.

    Raises:
        UserError: a continuation alone is longer than the model.
    """
    if not _plain(prefix):
        yield prefix, list(range(len(continuations))), [list(range(len(row))) for row in continuations]
        return
    lengths = prefix.columns.valid.sum(1).tolist()
    # The last token of a continuation is not read, but where it may be seen.
    read = [[len(tokens) - 1 + int(prefix.leaky) for tokens in row] for row in continuations]
    fits = [
        [k for k, more in enumerate(row) if length + more <= most]
        for length, row in zip(lengths, read, strict=True)
    ]
    whole = [n for n, of_row in enumerate(fits) if of_row]
    if all(len(of_row) == len(row) for of_row, row in zip(fits, read, strict=True)):
        yield prefix, whole, fits
        return
    if whole:
        yield _rows(prefix, whole), whole, [fits[n] for n in whole]
    for n, row in enumerate(read):
        for k, more in enumerate(row):
            if k not in fits[n]:
                if more >= most:
                    raise UserError(
                        f"prompt: found a continuation of {more + 1:,} tokens, expected at most {most:,}."
                    )
                on_cut()
                yield cut(_rows(prefix, [n]), most - more), [n], [[k]]


def shortened(prefix: Prefix, most: int, on_cut: Callable[[], None]) -> Prefix:
    """A batch of prompts to continue, each cut to its last `most` tokens."""
    lengths = prefix.columns.valid.sum(1).tolist()
    if not _plain(prefix) or max(lengths) <= most:
        return prefix
    rows = []
    for n, length in enumerate(lengths):
        row = _rows(prefix, [n])
        if length > most:
            on_cut()
        rows.append(cut(row, most) if length > most else row.trimmed())
    return Prefix.join(rows)


def _plain(prefix: Prefix) -> bool:
    """Whether it is tokens alone: latents have no beginning that could be cut off."""
    return prefix.ids is not None and prefix.memory is None


def _rows(prefix: Prefix, rows: Sequence[int]) -> Prefix:
    return prefix.select(torch.tensor(list(rows), device=prefix.columns.valid.device))

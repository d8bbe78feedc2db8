"""Tokens of one model matched to those of another by the characters that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentwire.lm.prefix import rounded
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.reader import Tokenizes

REMEMBERED = 65_536
"""Contexts whose tokens are kept: a training meets each of them several times."""
LONG = 4_096
"""Characters. Of longer contexts only the last `FEW` are kept, those of a step being read and of the next."""
FEW = 512

Spans = npt.NDArray[np.int32]
"""`(T, 2)`: where each token begins and ends in a context, in characters."""
Numbers = npt.NDArray[np.int32]
Made = TypeVar("Made")
Marked = Callable[[str], tuple[list[int], Spans]]


def marked(prompt_format: PromptFormat, lm: Tokenizes) -> Marked:
    """What gives a context's token ids, with what stands before it, and their spans; see `PromptFormat.spans`."""

    def spans(context: str) -> tuple[Numbers, Spans]:
        ids, found = prompt_format.spans(context, lm)
        return np.array(ids, dtype=np.int32), np.array(found, dtype=np.int32).reshape(-1, 2)

    kept = _kept(spans)

    def listed(context: str) -> tuple[list[int], Spans]:
        ids, found = kept(context)
        return ids.tolist(), found

    return listed


def remembered(prompt_format: PromptFormat, lm: Tokenizes) -> Callable[[str], list[int]]:
    """`PromptFormat.before` of contexts that are met again."""
    kept = _kept(lambda context: np.array(prompt_format.before(context, lm), dtype=np.int32))
    return lambda context: list(kept(context).tolist())


def _kept(make: Callable[[str], Made]) -> Callable[[str], Made]:
    few, many = lru_cache(FEW)(make), lru_cache(REMEMBERED)(make)
    return lambda context: many(context) if len(context) <= LONG else few(context)


def overlaps(wanted: Sequence[Spans], found: Sequence[Spans], device: torch.device, multiple: int = 1) -> Tensor:
    """`(B, T, S)`: each of T wanted tokens as a mixture of S found ones, by how many characters they share.

    Both are padded to a multiple of columns.

    One that shares no character with any (BOS, a line break that only one tokenizer writes) is the last found one
    that ends no later than it begins, or else the first. Rows of padding are zero.
    """
    wanted_at, wanted_valid = _padded(wanted, device, multiple)
    found_at, found_valid = _padded(found, device, multiple)
    start = torch.maximum(wanted_at[:, :, None, 0], found_at[:, None, :, 0])
    end = torch.minimum(wanted_at[:, :, None, 1], found_at[:, None, :, 1])
    shared = (end - start).clamp_min(0).float() * found_valid[:, None]
    total = shared.sum(-1, keepdim=True)
    earlier = (found_at[:, None, :, 1] <= wanted_at[:, :, None, 0]) & found_valid[:, None]
    last = earlier.long().cumsum(-1).argmax(-1)
    alone = torch.nn.functional.one_hot(last, shared.shape[-1]).float()
    mixed = torch.where(total > 0, shared / total.clamp_min(1), alone)
    return mixed * wanted_valid[..., None]


def _padded(rows: Sequence[Spans], device: torch.device, multiple: int) -> tuple[Tensor, Tensor]:
    """Spans `(B, T, 2)` and which of them are no padding, `(B, T)`."""
    lengths = [len(row) for row in rows]
    width = rounded(max(lengths), multiple)
    spans = np.zeros((len(rows), width, 2), dtype=np.int64)
    for at, row in enumerate(rows):
        spans[at, : len(row)] = row
    valid = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
    return torch.from_numpy(spans).to(device), valid

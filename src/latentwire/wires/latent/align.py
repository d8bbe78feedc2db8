"""Tokens of one model matched to tokens of another by the characters that they stand for."""

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
"""How many contexts' tokens are kept: a training reads each context several times."""
LONG = 4_096
"""Characters. Of longer contexts only the last `FEW` are kept: those of this step and of the next."""
FEW = 512

Spans = npt.NDArray[np.int32]
"""`(T, 2)`: where each token begins and ends in a context, in characters."""
Numbers = npt.NDArray[np.int32]
Made = TypeVar("Made")
Marked = Callable[[str], tuple[list[int], Spans]]


def marked(prompt_format: PromptFormat, lm: Tokenizes) -> Marked:
    """A cached `PromptFormat.spans`: a function from a context to its token ids and their character spans."""

    def spans(context: str) -> tuple[Numbers, Spans]:
        ids, found = prompt_format.spans(context, lm)
        return np.array(ids, dtype=np.int32), np.array(found, dtype=np.int32).reshape(-1, 2)

    kept = _kept(spans)

    def listed(context: str) -> tuple[list[int], Spans]:
        ids, found = kept(context)
        return ids.tolist(), found

    return listed


def remembered(prompt_format: PromptFormat, lm: Tokenizes) -> Callable[[str], list[int]]:
    """A cached `PromptFormat.before`: a function from a context to its token ids."""
    kept = _kept(lambda context: np.array(prompt_format.before(context, lm), dtype=np.int32))
    return lambda context: list(kept(context).tolist())


def _kept(make: Callable[[str], Made]) -> Callable[[str], Made]:
    few, many = lru_cache(FEW)(make), lru_cache(REMEMBERED)(make)
    return lambda context: many(context) if len(context) <= LONG else few(context)


def overlaps(wanted: Sequence[Spans], found: Sequence[Spans], device: torch.device, multiple: int = 1) -> Tensor:
    """Each wanted token as a mixture of found tokens, by how many characters they share.

    A wanted token that shares no character with any found one (BOS, a line break that only one tokenizer writes)
    is the last found token that ends no later than it begins, or else the first.

    Args:
        wanted: spans of T tokens of each context. found: spans of S tokens of each context.
        multiple: T and S are padded to a multiple of this.

    Returns:
        `(B, T, S)`; rows of padding are zero.
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
    """Spans `(B, T, 2)`, and which of them are no padding `(B, T)`."""
    lengths = [len(row) for row in rows]
    width = rounded(max(lengths), multiple)
    spans = np.zeros((len(rows), width, 2), dtype=np.int64)
    for at, row in enumerate(rows):
        spans[at, : len(row)] = row
    valid = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
    return torch.from_numpy(spans).to(device), valid

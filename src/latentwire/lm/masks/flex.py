"""FlexAttention over packed rows (Dong et al., 2412.05496): one compiled kernel, a block mask once a reading.

Every mask has the same structure, two tensors that say per query where its keys begin and end, so the kernel is
compiled once per shape and never for another packing. Shapes are compiled as they are (`dynamic=False`): the
loop keeps them fixed. A recompilation limit that is hit raises, since `flex_attention` would otherwise go on
unfused with a dense matrix of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from latentwire.lm.masks.intervals import intervals
from latentwire.lm.masks.reading import Reading

MULTIPLE = 128
"""Widths are multiples of a block of FlexAttention's masks."""
SHAPES = 64
"""How many shapes may be compiled before that is taken for a mistake."""


def block_mask(reading: Reading, both_ways: bool, window: int | None, device: torch.device) -> BlockMask:
    """The mask of a reading of intervals, made once and shared by its layers."""

    def make() -> BlockMask:
        found = intervals(reading)
        assert found is not None
        rows, width = found.start.shape
        start, stop = (each.int().to(device) for each in found.limits(both_ways, window))
        made: BlockMask = _creator(device.type)(_mask_mod(start, stop), rows, None, width, width, device=device)
        return made

    return reading.once(("flex", both_ways, window), make)


def _mask_mod(start: Tensor, stop: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= start[b, q]) & (k < stop[b, q])

    return sees


def attend(
    mask: BlockMask, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, cap: float | None
) -> Tensor:
    """Attention `(B, T, Hq, D)` of queries `(B, Hq, T, D)` over keys and values `(B, H, T, D)`.

    Args:
        cap: soft-capping of the scores, as Gemma 2 has it.
    """
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    if groups > 1 and heads & (heads - 1):  # as Transformers does: grouped only where heads are a power of two
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    out: Tensor = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if cap is None else _capped(cap),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous()


def _capped(cap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return score_mod


@cache
def _kernel(device: str) -> Any:
    # In one graph, so that hitting the limit raises instead of running something slower.
    return _compiled(flex_attention, fullgraph=True) if device == "cuda" else flex_attention


@cache
def _creator(device: str) -> Any:
    return _compiled(create_block_mask, fullgraph=False) if device == "cuda" else create_block_mask


def _compiled(function: Callable[..., Any], *, fullgraph: bool) -> Any:
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(SHAPES, dynamo.recompile_limit)
    return torch.compile(function, dynamic=False, fullgraph=fullgraph)

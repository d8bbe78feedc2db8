"""Prefix-LM attention as variable-length flash calls: no dense mask, no padding.

The columns of all rows are one sequence, cut into runs that stand in one block or are causal. Queries inside
blocks see everything from their document's start to the end of their block (a full call); all others see what
stands before them (a causal call, aligned at the end). Where every document has one block, at its start, the
causal call takes keys and values as they stand and only prompts are gathered; causal documents need no gather.

The idea is FlashAttention's `flash_attn_varlen_func` (Dao, 2307.08691) as `torch.nn.attention.varlen` has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentwire.lm.masks import varlen
from latentwire.lm.masks.intervals import Intervals, intervals
from latentwire.lm.masks.reading import Reading
from latentwire.lm.masks.varlen import FULL, Call


@dataclass(frozen=True, eq=False)
class Runs:
    """The calls of a mask, and the order in which they take the query tokens; None if that is the columns' own."""

    calls: tuple[Call, ...]
    order: Tensor | None
    inverse: Tensor | None


def runs(intervals: Intervals, both_ways: bool, device: torch.device) -> Runs:
    """Cut the columns into runs; all indices are made once a reading and shared by its layers."""
    width = intervals.start.shape[1]
    inside = intervals.inside if both_ways else torch.zeros_like(intervals.inside)
    at = torch.arange(width).expand_as(intervals.start)
    # Within a document a run ends where a block begins or ends.
    name = torch.where(inside, intervals.stop, 0)
    edge = (intervals.start == at) | torch.nn.functional.pad(name[:, 1:] != name[:, :-1], (1, 0), value=True)
    first = edge.flatten().nonzero()[:, 0]
    last = torch.cat([first[1:], torch.tensor([edge.numel()])])
    origin = (intervals.start + width * torch.arange(len(at))[:, None]).flatten()[first]
    full = inside.flatten()[first]
    calls, order = [], []
    for causal in (False, True):
        mine = full != causal
        if bool(mine.any()):
            order.append(_ranges(first[mine], last[mine]))
            calls.append(_call(first[mine], last[mine], origin[mine], causal, edge.numel(), device))
    arranged = torch.cat(order)
    if bool((arranged == torch.arange(len(arranged))).all()):
        return Runs(tuple(calls), None, None)
    return Runs(tuple(calls), arranged.to(device), arranged.argsort().to(device))


def _call(first: Tensor, last: Tensor, origin: Tensor, causal: bool, total: int, device: torch.device) -> Call:
    keys = _ranges(origin, last)
    everything = len(keys) == total and bool((keys == torch.arange(total)).all())
    return Call(
        queries=int((last - first).sum()),
        keys=None if everything else keys.to(device),
        distinct=len(keys.unique()) == len(keys),
        query_ends=_ends(last - first).to(device),
        key_ends=_ends(last - origin).to(device),
        longest=(int((last - first).max()), int((last - origin).max())),
        causal=causal,
    )


def _ranges(first: Tensor, last: Tensor) -> Tensor:
    """`first[0]..last[0]-1, first[1]..last[1]-1, …` as one index."""
    lengths = last - first
    shift = first - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)


def _ends(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


class _Taken(torch.autograd.Function):
    """Rows of a tensor by an index without repetition: a copy back, where autograd's own would add atomically."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor, inverse: Tensor | None) -> Tensor:
        ctx.index, ctx.inverse, ctx.count = index, inverse, len(tokens)
        return tokens.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        if ctx.inverse is not None:
            return gradient.index_select(0, ctx.inverse), None, None
        back = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return back.index_copy_(0, ctx.index, gradient), None, None


def attend(
    reading: Reading,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    both_ways: bool,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attention `(B, T, Hq, D)` of queries `(B, Hq, T, D)` over keys and values `(B, H, T, D)`.

    The reading's mask must be one of intervals. On a GPU this is `torch.nn.attention.varlen`, in half precision;
    elsewhere the same calls by a plain loop.
    """
    found = intervals(reading)
    assert found is not None
    how = reading.once(("runs", both_ways), lambda: runs(found, both_ways, query.device))
    rows, _, width, _ = query.shape
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    if how.order is not None:
        query = _Taken.apply(query, how.order, how.inverse)
    parts = query.split([call.queries for call in how.calls])
    out = [_run(call, part, key, value, window, scale) for call, part in zip(how.calls, parts, strict=True)]
    joined: Tensor = out[0] if len(out) == 1 else torch.cat(out)
    if how.order is not None:
        joined = _Taken.apply(joined, how.inverse, how.order)
    made: Tensor = joined.unflatten(0, (rows, width))
    return made


def _run(call: Call, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None) -> Tensor:
    if call.keys is not None:
        if call.distinct:
            key, value = (_Taken.apply(each, call.keys, None) for each in (key, value))
        else:
            key, value = (each.index_select(0, call.keys) for each in (key, value))
    # A window that holds the longest run hides nothing, and its kernel is the slower one.
    reach = FULL if window is None or window >= call.longest[1] else window - 1
    return varlen.kernel(query)(call, query, key, value, (reach, 0 if call.causal else reach), scale)

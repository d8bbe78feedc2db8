"""One variable-length attention call: flash attention on a GPU, a plain loop elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from latentwire.lm.masks.safe_gradients import scaled_dot_product_attention

FULL = -1
"""Size of an unlimited window."""


@dataclass(frozen=True, eq=False)
class Call:
    """One variable-length call over N runs.

    queries: how many query tokens. keys: index of the key tokens, None for all in their order; distinct: no key
    stands in it twice. query_ends, key_ends: `(N + 1,)` int32, where runs begin and end. longest: of the queries
    and of the keys. causal: whether a query sees only what stands before it.
    """

    queries: int
    keys: Tensor | None
    distinct: bool
    query_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]
    causal: bool


def kernel(query: Tensor) -> Callable[..., Tensor]:
    """`flash` or `loop`, by where the queries are."""
    return flash if query.is_cuda else loop


def flash(
    call: Call, query: Tensor, key: Tensor, value: Tensor, window: tuple[int, int], scale: float | None
) -> Tensor:
    """`(Tq, Hq, D)`: attention of the call's queries `(Tq, Hq, D)` over its keys and values `(Tk, H, D)`.

    Args:
        window: how many keys to the left and to the right of its own a query sees; `FULL` for all.
    """
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"enable_gqa": True} if _has_groups() else {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not options and not _groups_heads(query.device):
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    options |= {"scale": scale, "window_size": window}
    made = varlen_attn(query, key, value, call.query_ends, call.key_ends, *call.longest, **options)
    assert isinstance(made, Tensor)
    return made


@cache
def _has_groups() -> bool:
    """Whether `varlen_attn` knows grouped queries: from torch 2.12 on."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


@cache
def _groups_heads(device: torch.device) -> bool:
    """Whether the `varlen_attn` of torch 2.11, which has no argument for it, groups query heads all the same.

    The kernel below it does. A copy of keys and values per query head is four times their memory in every layer,
    so it is worth one look at forward and backward on eight tokens.
    """
    from torch.nn.attention.varlen import varlen_attn

    draw = torch.Generator(device).manual_seed(0)
    ends = torch.tensor([0, 8], dtype=torch.int32, device=device)
    query, key, value = (
        torch.randn(8, heads, 64, generator=draw, device=device, dtype=torch.bfloat16) for heads in (4, 2, 2)
    )

    def gradients(repeat: bool) -> list[Tensor]:
        leaves = [each.clone().requires_grad_() for each in (query, key, value)]
        k, v = (each.repeat_interleave(2, 1) if repeat else each for each in leaves[1:])
        out = varlen_attn(leaves[0], k, v, ends, ends, 8, 8, window_size=(-1, 0))
        assert isinstance(out, Tensor)
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    with torch.enable_grad():
        try:
            ours, wanted = gradients(False), gradients(True)
        except (RuntimeError, ValueError):
            return False
    return all(
        torch.allclose(a.float(), b.float(), atol=0.05, rtol=0.05) for a, b in zip(ours, wanted, strict=True)
    )


def loop(
    call: Call, query: Tensor, key: Tensor, value: Tensor, window: tuple[int, int], scale: float | None
) -> Tensor:
    """What `varlen_attn` computes, run by run, where there is no flash kernel."""
    made = []
    for (a, b), (c, d) in zip(pairwise(call.query_ends.tolist()), pairwise(call.key_ends.tolist()), strict=True):
        # Aligned at the end: the last query of a run belongs to its last key.
        distance = torch.arange(d - c)[None, :] - (torch.arange(b - a)[:, None] + (d - c) - (b - a))
        left, right = window
        see = torch.ones_like(distance, dtype=torch.bool)
        if left != FULL:
            see &= distance >= -left
        if right != FULL:
            see &= distance <= right
        q, k, v = (each.transpose(0, 1)[None] for each in (query[a:b], key[c:d], value[c:d]))
        out = scaled_dot_product_attention(q, k, v, attn_mask=see.to(q.device), scale=scale, enable_gqa=True)
        made.append(out[0].transpose(0, 1))
    return torch.cat(made)

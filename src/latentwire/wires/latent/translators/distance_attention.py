"""Attention with a learned preference of each head for what stands near."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentwire.lm.masks.safe_gradients import scaled_dot_product_attention


class Near(nn.Module):
    """Multi-head attention; each head learns how fast its interest fades with distance.

    Slopes begin as those of ALiBi (2108.12409), so that a few heads look at neighbours and some everywhere, and a
    context twice as long is no new situation.

    Args:
        width: of queries and of what is attended to; `heads` divide it. near: without it no place is known.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, near: bool = True) -> None:
        super().__init__()
        self._heads, self._dropout = heads, dropout
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        slope = -torch.log(torch.tensor(2.0)) * torch.arange(heads).float()
        self.slope = nn.Parameter(slope) if near else None

    def forward(self, asking: Tensor, asked: Tensor, apart: Tensor, valid: Tensor) -> Tensor:
        """`(B, M, width)`.

        Args:
            asking: `(B, M, width)`. asked: `(B, T, width)`. apart: `(B, M, T)`, distances in columns. valid:
                `(B, T)`, at least one in each row.
        """
        if self.slope is None:
            near = torch.zeros_like(apart)[:, None]
        else:
            near = -apart[:, None] * self.slope.exp()[:, None, None]
        near = near.masked_fill(~valid[:, None, None], float("-inf"))
        query, key, value = (
            each.unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for each in (self.query(asking), self.key(asked), self.value(asked))
        )
        read = scaled_dot_product_attention(
            query, key, value, attn_mask=near.to(query), dropout_p=self._dropout if self.training else 0.0
        )
        made: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return made


class SwiGlu(nn.Module):
    """A gated two-layer network (2002.05202), inside two thirds of four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * width // 3
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.down(F.silu(self.gate(hidden)) * self.up(hidden))
        return made

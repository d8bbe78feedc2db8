"""Attention in which each head learns how much it prefers what stands near."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentwire.lm.masks.safe_gradients import scaled_dot_product_attention


class Near(nn.Module):
    """Multi-head attention in which each head learns how fast its attention falls off with distance.

    Slopes begin as in ALiBi (2108.12409): some heads attend to neighbours and some everywhere, and a longer
    context needs nothing new.

    Args:
        width: of queries and of what they attend to, a multiple of `heads`.
        near: whether distance counts; without it places are unknown.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, near: bool = True) -> None:
        super().__init__()
        self._heads, self._dropout = heads, dropout
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        slope = -torch.log(torch.tensor(2.0)) * torch.arange(heads).float()
        self.slope = nn.Parameter(slope) if near else None

    def forward(self, asking: Tensor, asked: Tensor, apart: Tensor, valid: Tensor) -> Tensor:
        """States `(B, M, width)`.

        Args:
            asking: queries `(B, M, width)`. asked: what they attend to, `(B, T, width)`.
            apart: `(B, M, T)`, distances in columns. valid: `(B, T)`, at least one in each row.
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
    """A gated two-layer network (2002.05202), 8/3 times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 8 * width // 3
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.down(F.silu(self.gate(hidden)) * self.up(hidden))
        return made

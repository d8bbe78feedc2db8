"""Learned queries that pool any number of states into M latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentwire.lm.masks.safe_gradients import scaled_dot_product_attention


class Pool(nn.Module):
    """M queries that cross-attend over states, each at first near its own place, with a gate a query and layer.

    Random queries give nearly the same latents for every text, since all of them attend everywhere alike. These
    begin as weighted means of M neighbouring spans, a pooling that is hard to beat (Feldman and Artzi,
    2510.20797), and learn where to attend and how sharply. Cross-attention as in Perceiver (2103.03206).

    Args:
        source: width of the states. width: of the latents. latents: M. heads: must divide `width`. layers: how
            often the queries attend.
    """

    def __init__(self, source: int, width: int, latents: int, *, heads: int, layers: int) -> None:
        super().__init__()
        # Small, so that from the start what a query reads outweighs what it is.
        self.queries = nn.Parameter(0.02 * torch.randn(latents, width))
        self.centre = nn.Parameter((torch.arange(latents) + 0.5) / latents)
        self.sharpness = nn.Parameter(torch.full((latents,), math.log(latents)))
        self.gates = nn.Parameter(torch.ones(layers, latents))
        self.norm = nn.LayerNorm(source)
        self.layers = nn.ModuleList(_Layer(source, width, heads) for _ in range(layers))

    def forward(self, states: Tensor, valid: Tensor) -> Tensor:
        """Latents `(B, M, width)` of states `(B, T, source)`; `valid` `(B, T)` has at least one in each row."""
        states = self.norm(states.float())
        place = (valid.cumsum(1) - 0.5) / valid.sum(1, keepdim=True)
        apart = (place[:, None] - self.centre[:, None]) * self.sharpness.exp()[:, None]
        near = (-0.5 * apart.square()).masked_fill(~valid[:, None], -torch.inf)[:, None]
        latents = self.queries.expand(len(states), -1, -1)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            latents = layer(latents, states, near, gate[:, None])
        return latents


class _Layer(nn.Module):
    def __init__(self, source: int, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm, self.ask = nn.LayerNorm(width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(source, width, bias=False), nn.Linear(source, width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents: Tensor, states: Tensor, near: Tensor, gate: Tensor) -> Tensor:
        query, key, value = (
            each.unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for each in (self.ask(self.norm(latents)), self.key(states), self.value(states))
        )
        read = scaled_dot_product_attention(query, key, value, attn_mask=near)
        latents = latents + gate * self.out(read.transpose(1, 2).flatten(2))
        added: Tensor = self.mlp(latents)
        return latents + added

"""The `cross` translator: queries read the source's states through gated cross-attention."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.wires.latent.translators.distance_attention import Near, SwiGlu
from latentwire.wires.latent.translators.translator import States, Translator, TranslatorConfig


class CrossConfig(TranslatorConfig):
    """Layers of self-attention among queries, cross-attention to the source's states, and a gated MLP.

    Queries are learned where the number of latents is fixed; otherwise each begins as the mean of its columns.

    Attributes:
        layers: how many.
        mixing: layers in which the states see each other first.
        heads: attention heads, which divide the latents' width.
        gate: every part is added through the tanh of a gate that begins at this value (0 as in Flamingo,
            2204.14198).
        dropout: in attention, in training.
    """

    kind: Literal["cross"] = "cross"
    layers: int = Field(default=2, ge=1)
    mixing: int = Field(default=0, ge=0)
    heads: int = Field(default=8, ge=1)
    gate: float = 0.0
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, source: int, width: int, slots: int) -> Translator:
        if width % self.heads:
            raise UserError(
                f"cross: found latents of width {width}, expected a multiple of its {self.heads} heads."
            )
        return CrossTranslator(self, source, width, slots)


class CrossTranslator(Translator):
    """The module of `CrossConfig`."""

    def __init__(self, settings: CrossConfig, source: int, width: int, slots: int) -> None:
        super().__init__()
        self.inward = nn.Linear(source, width)
        self.queries = nn.Parameter(nn.init.orthogonal_(torch.empty(slots, width))) if slots else None
        self.mixing = nn.ModuleList(Block(width, settings, across=False) for _ in range(settings.mixing))
        self.layers = nn.ModuleList(Block(width, settings, across=True) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(width)

    def forward(self, states: States) -> Tensor:
        content, valid = self.inward(states.content), states.valid
        at = torch.arange(content.shape[1], device=content.device).expand(len(content), -1).float()
        apart = (at[:, :, None] - at[:, None]).abs()
        for layer in self.mixing:
            content = layer(content, apart, valid)
        if self.queries is None:
            assert states.weights is not None
            asking = states.weights.to(content) @ content
        else:
            asking = self.queries.expand(len(content), -1, -1)
        real = states.real
        places = states.places.float()
        among, across = (places[:, :, None] - places[:, None]).abs(), (places[:, :, None] - at[:, None]).abs()
        for layer in self.layers:
            asking = layer(asking, among, real, content, across, valid)
        latents: Tensor = self.norm(asking)
        return latents


class Block(nn.Module):
    """Self-attention, cross-attention if `across`, and a gated MLP, each after a norm and through a tanh gate."""

    def __init__(self, width: int, settings: CrossConfig, *, across: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3 if across else 2))
        self.gates = nn.Parameter(torch.full((len(self.norms),), settings.gate))
        self.among = Near(width, settings.heads, settings.dropout)
        self.across = Near(width, settings.heads, settings.dropout) if across else None
        self.states = nn.RMSNorm(width) if across else None
        self.mlp = SwiGlu(width)

    def forward(
        self,
        hidden: Tensor,
        apart: Tensor,
        valid: Tensor,
        asked: Tensor | None = None,
        across: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """States `(B, M, width)`.

        Args:
            hidden: `(B, M, width)`. apart: distances `(B, M, M)`. valid: `(B, M)`.
            asked: `(B, T, width)`, for cross-attention. across: distances `(B, M, T)`. known: `(B, T)`.
        """
        gates = self.gates.tanh()
        seen = valid.clone()
        seen[:, 0] = True  # a softmax over nothing is NaN
        normed = self.norms[0](hidden)
        hidden = hidden + gates[0] * self.among(normed, normed, apart, seen)
        if self.across is not None and self.states is not None:
            read = self.across(self.norms[1](hidden), self.states(asked), across, known)
            hidden = hidden + gates[1] * read
        added: Tensor = self.mlp(self.norms[-1](hidden))
        return hidden + gates[-1] * added

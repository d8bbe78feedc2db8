"""The `embeddings` adapter: soft tokens in the reader's input."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentwire.lm.model import LM
from latentwire.wires.latent.adapters.adapter import Adapter, AdapterConfig, Delivered, Film
from latentwire.wires.latent.message import Latents


class EmbeddingsConfig(AdapterConfig):
    """Soft tokens, made by a residual two-layer MLP and scaled to the size of the reader's own embeddings.

    Attributes:
        hidden: the MLP's inner width.
        dropout: in the MLP, in training.
        film: scale and shift by how many tokens a latent stands for.
        affine: a learned scale and shift for each channel.
        gain: a learned factor on all channels.
    """

    kind: Literal["embeddings"] = "embeddings"
    hidden: int = Field(default=512, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    film: bool = False
    affine: bool = True
    gain: bool = True

    def build(self, source: int, lm: LM) -> Adapter:
        return EmbeddingsAdapter(self, source, lm)


class EmbeddingsAdapter(Adapter):
    """Maps latents to soft tokens of the reader's input."""

    rms: Tensor

    def __init__(self, settings: EmbeddingsConfig, source: int, lm: LM) -> None:
        super().__init__()
        table = lm.embeddings().detach()
        width = table.shape[1]
        self._dtype = table.dtype
        self.norm = nn.RMSNorm(source)
        self.skip = nn.Identity() if source == width else nn.Linear(source, width, bias=False)
        self.inner, self.outer = nn.Linear(source, settings.hidden), nn.Linear(settings.hidden, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.dropout = nn.Dropout(settings.dropout)
        self.film = Film(settings.hidden) if settings.film else None
        self.scale = nn.Parameter(torch.ones(width)) if settings.affine else None
        self.shift = nn.Parameter(torch.zeros(width)) if settings.affine else None
        self.gain = nn.Parameter(torch.ones(())) if settings.gain else None
        # A function of the reader's weights, so not saved; summed in float64 so that machines agree to the bit.
        size = table.cpu().float().square().mean(dtype=torch.float64).sqrt().float()
        self.register_buffer("rms", size, persistent=False)

    def forward(self, latents: Latents) -> Delivered:
        flat = self.norm(latents.flat().float())
        inner = self.inner(flat)
        if self.film is not None:
            inner = self.film(inner, latents)
        soft = self.skip(flat) + self.outer(self.dropout(F.gelu(inner)))
        soft = F.rms_norm(soft, soft.shape[-1:]) * self.rms
        if self.scale is not None and self.shift is not None:
            soft = soft * self.scale + self.shift
        soft = soft if self.gain is None else soft * self.gain
        return Delivered(embeddings=soft.to(self._dtype))

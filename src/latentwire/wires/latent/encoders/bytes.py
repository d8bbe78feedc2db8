"""The `bytes` encoder: a transformer over the context's UTF-8 bytes, trained from scratch, without a tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latentwire.lm.model import LM
from latentwire.lm.prefix import pad_rows
from latentwire.wires.latent.encoders.encoder import Encoder, Pooling
from latentwire.wires.latent.encoders.pool import Pool
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.select import spread
from latentwire.wires.latent.transformer import Bidirectional

BEGIN = 256
"""Stands before the first byte, so that an empty context is not empty for the transformer."""


class BytesConfig(Pooling):
    """A byte transformer, trained from scratch and pooled into M latents; LatentWire's design of 2025.

    Attributes:
        layers: of the transformer.
        bytes_per_token: how many bytes count as one token in positions and lengths.
    """

    kind: Literal["bytes"] = "bytes"
    layers: int = Field(default=4, ge=1)
    bytes_per_token: float = Field(default=4.0, gt=0)

    def build(self, source: LM) -> BytesEncoder:
        return BytesEncoder(self, source.device)


class BytesEncoder(Encoder):
    """Reads bytes in both directions. Positions are sinusoids (1706.03762), so that any length can be read."""

    def __init__(self, settings: BytesConfig, device: torch.device) -> None:
        super().__init__()
        self._bytes_per_token = settings.bytes_per_token
        width = settings.width
        self.embed = nn.Embedding(BEGIN + 1, width)
        self.reader = Bidirectional(width, settings.layers, settings.heads)
        self.pool = Pool(width, width, settings.latents, heads=settings.heads, layers=settings.pool_layers)
        self.to(device)

    def forward(self, contexts: Sequence[str]) -> Latents:
        """Latents of B contexts, M vectors each."""
        device = self.embed.weight.device
        rows = [[BEGIN, *context.encode()] for context in contexts]
        ids = pad_rows(rows, BEGIN).to(device)
        sizes = torch.tensor([len(row) for row in rows], device=device)
        valid = torch.arange(ids.shape[1], device=device) < sizes[:, None]
        content = self.embed(ids) + _sinusoids(ids.shape[1], self.embed.weight.shape[1]).to(device)
        vectors = self.pool(self.reader(content, valid), valid)
        length = (sizes / self._bytes_per_token).ceil().long()
        positions = spread(length, vectors.shape[1])
        return Latents(valid=positions >= 0, positions=positions, length=length, vectors=vectors)


def _sinusoids(length: int, width: int) -> Tensor:
    """`(length, width)`: sine and cosine of the position at wavelengths from 2 pi to 20,000 pi."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]

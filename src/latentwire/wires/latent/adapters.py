"""Adapters: what makes latents readable for one model. Each reader of a wire has its own.

An adapter turns `Latents` into `Delivered`: soft tokens in the reader's input, keys and values of all its layers,
or both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm import checks
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.message import Latents


@dataclass(frozen=True, eq=False)
class Delivered:
    """What a reader gets. embeddings: `(B, M, D)`. keys (not rotated), values: one `(B, H, M, D)` a layer."""

    embeddings: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


class _Adapter(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Native(_Adapter):
    """Keys and values as the encoder gives them: the reader has the encoder's own layers."""

    kind: Literal["native"] = "native"

    def build(self, source: int, lm: LM) -> nn.Module:
        return _Native(lm)


class Embeddings(_Adapter):
    """Soft tokens: a residual two-layer MLP, scaled to the size of the reader's own embeddings.

    hidden: its inner width. film: scale and shift by how many tokens a latent stands for. affine: a learned scale
    and shift a channel. gain: a learned factor on all of it.
    """

    kind: Literal["embeddings"] = "embeddings"
    hidden: int = Field(default=512, ge=1)
    film: bool = False
    affine: bool = True
    gain: bool = True

    def build(self, source: int, lm: LM) -> nn.Module:
        return _Embeddings(self, source, lm)


class DeepPrefix(_Adapter):
    """Keys and values of every layer, made from each latent by a generator a layer (P-Tuning v2; Cache-to-Cache).

    hidden: width of what all layers share. dropout: of it, in training.
    """

    kind: Literal["deep_prefix"] = "deep_prefix"
    hidden: int = Field(default=512, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, source: int, lm: LM) -> nn.Module:
        return _DeepPrefix(self, source, lm)


Adapter = Annotated[Native | Embeddings | DeepPrefix, Field(discriminator="kind")]


class _Native(nn.Module):
    def __init__(self, lm: LM) -> None:
        super().__init__()
        self._layers, self._heads, self._width = kv_shape(lm)

    def forward(self, latents: Latents) -> Delivered:
        shape = (self._layers, self._heads, self._width)
        found = (len(latents.keys), *(latents.keys[0].shape[i] for i in (1, 3))) if latents.keys else (0, 0, 0)
        if found != shape:
            raise UserError(
                f"adapter: found native for {found} layers, heads and width, expected the reader's {shape}."
            )
        return Delivered(keys=latents.keys, values=latents.values)


class _Embeddings(nn.Module):
    rms: Tensor

    def __init__(self, settings: Embeddings, source: int, lm: LM) -> None:
        super().__init__()
        table = lm.embeddings().detach().float()
        width = table.shape[1]
        self.norm = nn.RMSNorm(source)
        self.skip = nn.Identity() if source == width else nn.Linear(source, width, bias=False)
        self.inner, self.outer = nn.Linear(source, settings.hidden), nn.Linear(settings.hidden, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.film = nn.Linear(1, 2 * settings.hidden) if settings.film else None
        self.scale = nn.Parameter(torch.ones(width)) if settings.affine else None
        self.shift = nn.Parameter(torch.zeros(width)) if settings.affine else None
        self.gain = nn.Parameter(torch.ones(())) if settings.gain else None
        self.register_buffer("rms", table.square().mean().sqrt())

    def forward(self, latents: Latents) -> Delivered:
        flat = self.norm(latents.flat().float())
        inner = self.inner(flat)
        if self.film is not None:
            share = (latents.length / latents.valid.sum(1).clamp_min(1)).log()[:, None, None]
            factor, offset = self.film(share).chunk(2, -1)
            inner = inner * (1 + factor) + offset
        made = self.skip(flat) + self.outer(F.gelu(inner))
        made = F.rms_norm(made, made.shape[-1:]) * self.rms
        if self.scale is not None and self.shift is not None:
            made = made * self.scale + self.shift
        return Delivered(embeddings=made if self.gain is None else made * self.gain)


class _DeepPrefix(nn.Module):
    def __init__(self, settings: DeepPrefix, source: int, lm: LM) -> None:
        super().__init__()
        self._layers, self._heads, self._width = kv_shape(lm)
        size = self._heads * self._width
        self.norm = nn.LayerNorm(source)
        self.shared = nn.Sequential(nn.Linear(source, settings.hidden), nn.GELU(), nn.Dropout(settings.dropout))
        self.skip = nn.Linear(source, settings.hidden, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(settings.hidden), nn.Linear(settings.hidden, 2 * size))
            for _ in range(self._layers)
        )

    def forward(self, latents: Latents) -> Delivered:
        flat = self.norm(latents.flat().float())
        shared = self.skip(flat) + self.shared(flat)
        pairs = [self._heads_of(layer(shared)) for layer in self.layers]
        return Delivered(keys=tuple(key for key, _ in pairs), values=tuple(value for _, value in pairs))

    def _heads_of(self, both: Tensor) -> tuple[Tensor, Tensor]:
        rows, count, _ = both.shape
        key, value = both.view(rows, count, 2, self._heads, self._width).permute(2, 0, 3, 1, 4)
        return key, value


def kv_shape(lm: LM) -> tuple[int, int, int]:
    """Layers, key/value heads and width of a head."""
    # Asked of the model itself: configurations name these in many ways, and some name what does not count.
    with torch.no_grad(), checks.evaluating(lm.model):
        keys = lm.memorize(Prefix.of_tokens([[0]], device=lm.device))[1].keys
    return len(keys), keys[0].shape[1], keys[0].shape[3]

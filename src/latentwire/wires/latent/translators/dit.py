"""The `dit` translator: a rectified flow samples latents from noise, conditioned on the source's states."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentwire.wires.latent.translators.distance_attention import Near
from latentwire.wires.latent.translators.translator import States, Translator, TranslatorConfig


class DitConfig(TranslatorConfig):
    """A diffusion transformer (2212.09748) as a rectified flow (2209.03003), run from noise in Euler steps.

    It reads the source's states by cross-attention, and one pooled vector of them together with the time
    (AdaLN-Zero). The noise is a function of `seed` and the context, so a context has the same latents every time.

    Attributes:
        hidden: inner width, an even multiple of `heads`.
        layers: how many. heads: attention heads.
        pool: how the pooled vector is made.
        steps_train: Euler steps in training; the reader's loss flows through all of them. steps: otherwise.
        guidance: of sampling (2207.12598); 0 and 1 mean none.
        drop: share of contexts that the objective `flow` hides, where there is guidance.
        pooled_only: no cross-attention and no places, as in LatentWire's first bridge; for comparison.
        seed: of the noise.
    """

    kind: Literal["dit"] = "dit"
    hidden: int = Field(default=512, ge=2)
    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=8, ge=1)
    pool: Literal["mean", "attention"] = "mean"
    steps_train: int = Field(default=4, ge=1)
    steps: int = Field(default=4, ge=1)
    guidance: float = Field(default=0.0, ge=0)
    drop: float = Field(default=0.1, ge=0, lt=1)
    pooled_only: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads or self.hidden % 2:
            raise ValueError(f"hidden: found {self.hidden}, expected an even multiple of the {self.heads} heads")
        return self

    @property
    def guided(self) -> bool:
        return self.guidance not in (0.0, 1.0)

    def build(self, source: int, width: int, slots: int) -> DitTranslator:
        return DitTranslator(self, source, width)


@dataclass(frozen=True, eq=False)
class _Known:
    """The condition: states `(B, T, hidden)`, a pooled vector `(B, hidden)`, places and distances of latents."""

    content: Tensor
    pooled: Tensor
    valid: Tensor
    real: Tensor
    places: Tensor
    among: Tensor
    across: Tensor


class DitTranslator(Translator):
    """A network for velocities, and sampling along them."""

    def __init__(self, settings: DitConfig, source: int, width: int) -> None:
        super().__init__()
        hidden = settings.hidden
        self.settings, self.width = settings, width
        self.inward, self.enter = nn.Linear(source, hidden), nn.Linear(width, hidden)
        self.asking = nn.Parameter(torch.randn(hidden) * 0.02) if settings.pool == "attention" else None
        self.nothing = nn.Parameter(torch.randn(hidden) * 0.02) if settings.guided else None
        self.pooled, self.time = (
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)) for _ in range(2)
        )
        self.blocks = nn.ModuleList(
            _Block(hidden, settings.heads, across=not settings.pooled_only) for _ in range(settings.layers)
        )
        self.last, self.leave = _zero(nn.Linear(hidden, 2 * hidden)), _zero(nn.Linear(hidden, width))

    def forward(self, states: States) -> Tensor:
        """Sampled latents `(B, M, width)`, a function of context and seed alone."""
        settings = self.settings
        point = self._noise([f"{settings.seed}/{each}" for each in states.contexts], states.real)
        known = self._known(states)
        blank = None if self.nothing is None else self._known(states, torch.ones_like(states.real[:, 0]))
        count = settings.steps_train if self.training else settings.steps
        for step in range(count):
            at = point.new_full((len(point),), step / count)
            speed = self._velocity(point, at, known)
            if blank is not None:
                plain = self._velocity(point, at, blank)
                speed = plain + settings.guidance * (speed - plain)
            point = point + speed / count
        return point

    def matching(self, states: States, aims: Tensor, draws: Sequence[random.Random]) -> Tensor:
        """Mean squared error `(B, M)` of the velocities against those that lead straight from noise to the aims.

        Args:
            aims: `(B, M, width)`.
            draws: one random stream for each context, for time, noise and whether the context is hidden.
        """
        at = torch.tensor([draw.random() for draw in draws], device=aims.device)
        hide = torch.tensor([draw.random() < self.settings.drop for draw in draws], device=aims.device)
        start = self._noise([str(draw.getrandbits(64)) for draw in draws], states.real)
        known = self._known(states, None if self.nothing is None else hide)
        point = torch.lerp(start, aims, at[:, None, None])
        apart = self._velocity(point, at, known) - (aims - start)
        return apart.square().mean(-1)

    def _velocity(self, point: Tensor, at: Tensor, known: _Known) -> Tensor:
        hidden = self.enter(point) + known.places
        condition = F.silu(self.time(_waves(1000 * at, known.pooled.shape[-1])) + known.pooled)
        for block in self.blocks:
            hidden = block(hidden, condition, known)
        scale, shift = self.last(condition)[:, None].chunk(2, -1)
        speed: Tensor = self.leave(_norm(hidden) * (1 + scale) + shift)
        return speed.float()

    def _known(self, states: States, hide: Tensor | None = None) -> _Known:
        content = self.inward(states.content)
        if hide is not None and self.nothing is not None:
            content = torch.where(hide[:, None, None], self.nothing.to(content), content)
        if self.asking is None:
            share = states.valid / states.valid.sum(1, keepdim=True)
        else:
            heard = (content @ self.asking.to(content)).float() / math.sqrt(content.shape[-1])
            share = heard.masked_fill(~states.valid, float("-inf")).softmax(-1)
        pooled = self.pooled((share[:, None].to(content) @ content)[:, 0])
        places, column = states.places.float(), torch.arange(content.shape[1], device=content.device)
        waves = _waves(places, content.shape[-1])
        return _Known(
            content=_norm(content),
            pooled=pooled,
            valid=states.valid,
            real=states.real,
            places=torch.zeros_like(waves) if self.settings.pooled_only else waves,
            among=(places[:, :, None] - places[:, None]).abs(),
            across=(places[:, :, None] - column).abs(),
        )

    def _noise(self, names: Sequence[str], real: Tensor) -> Tensor:
        """Noise `(B, M, width)`; each row's is a function of its name, whatever else is in the batch."""
        drawn = torch.zeros(*real.shape, self.width)
        for row, (name, count) in enumerate(zip(names, real.sum(1).tolist(), strict=True)):
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
            drawn[row, :count] = torch.randn(count, self.width, generator=torch.Generator().manual_seed(seed))
        return drawn.to(real.device)


class _Block(nn.Module):
    """Self-attention, cross-attention if `across`, and an MLP, each scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int, *, across: bool) -> None:
        super().__init__()
        self.parts = 3 if across else 2
        self.modulate = _zero(nn.Linear(width, 3 * self.parts * width))
        self.among = Near(width, heads, near=across)
        self.across = Near(width, heads) if across else None
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, condition: Tensor, known: _Known) -> Tensor:
        scale, shift, gate = self.modulate(condition)[:, None].unflatten(-1, (3, self.parts, -1)).unbind(2)

        def changed(part: int) -> Tensor:
            made: Tensor = _norm(hidden) * (1 + scale[:, :, part]) + shift[:, :, part]
            return made

        seen = known.real.clone()
        seen[:, 0] = True  # a softmax over nothing is NaN
        own = changed(0)
        hidden = hidden + gate[:, :, 0] * self.among(own, own, known.among, seen)
        if self.across is not None:
            read = self.across(changed(1), known.content, known.across, known.valid)
            hidden = hidden + gate[:, :, 1] * read
        added: Tensor = self.mlp(changed(-1))
        last: Tensor = hidden + gate[:, :, -1] * added
        return last


def _norm(hidden: Tensor) -> Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:])


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _waves(values: Tensor, width: int) -> Tensor:
    """Sines and cosines `(..., width)` of numbers `(...)`, at increasing wavelengths (1706.03762)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)

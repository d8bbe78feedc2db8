"""What translators have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class States:
    """What the source holds of B contexts, and where latents are wanted.

    content: `(B, T, S)` in float32. valid: `(B, T)`. weights: `(B, M, T)`, each latent as a mixture of columns;
    all zero where a row has fewer latents. None for a fixed number, which the translator's own queries give.
    places: `(B, M)`, where each latent stands among the T columns. contexts: the B of them, for what is drawn by
    context.
    """

    content: Tensor
    valid: Tensor
    weights: Tensor | None
    places: Tensor
    contexts: tuple[str, ...] = ()

    @property
    def real(self) -> Tensor:
        """`(B, M)`: which latents a context has; those stand before the others."""
        if self.weights is None:
            return torch.ones_like(self.places, dtype=torch.bool)
        return self.weights.any(-1)


class TranslatorConfig(BaseModel):
    """Settings of a translator, a class with a `kind` and `build(source, width, slots) -> nn.Module`.

    source: the width of a state. width: of a latent. slots: how many latents, 0 where that follows the context's
    length. The module turns `States` into `(B, M, width)`; one row never depends on another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def build(self, source: int, width: int, slots: int) -> nn.Module:
        raise NotImplementedError

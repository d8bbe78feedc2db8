"""`TranslatorConfig`, `Translator` and `States`: what all translators have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentwire.kinds import Kind


@dataclass(frozen=True, eq=False)
class States:
    """What the source computed of B contexts of T columns, and where the M latents of each are wanted.

    Attributes:
        content: `(B, T, S)`, float32.
        valid: `(B, T)`, which columns are no padding.
        weights: `(B, M, T)`, each latent as a mixture of columns; a row is zero where a context has fewer latents.
            None for a fixed number of latents, which the translator's own queries give.
        places: `(B, M)`, the column at which each latent stands.
        contexts: the B contexts, for translators whose noise is a function of the context.
    """

    content: Tensor
    valid: Tensor
    weights: Tensor | None
    places: Tensor
    contexts: tuple[str, ...] = ()

    @property
    def real(self) -> Tensor:
        """`(B, M)`: which latents a context has; they stand before the others."""
        if self.weights is None:
            return torch.ones_like(self.places, dtype=torch.bool)
        return self.weights.any(-1)


class Translator(nn.Module, ABC):
    """A module that makes latents of what a source computed; one row never depends on another."""

    @abstractmethod
    def forward(self, states: States) -> Tensor:
        """Latents `(B, M, width)`."""


class TranslatorConfig(Kind, ABC):
    """The configuration of a translator: a `kind`, its options, and `build`."""

    @abstractmethod
    def build(self, source: int, width: int, slots: int) -> Translator:
        """The module.

        Args:
            source: width of a state. width: of a latent. slots: how many latents, 0 where that follows the
                context's length.

        Raises:
            UserError: a setting that does not fit.
        """

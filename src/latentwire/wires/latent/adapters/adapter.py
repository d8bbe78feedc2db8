"""`AdapterConfig` and `Adapter`: what all adapters have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from latentwire.kinds import Kind
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.masks.reading import Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.message import Latents


@dataclass(frozen=True, eq=False)
class Delivered:
    """What a reader gets of M latents: soft tokens, keys and values of all its layers, or both.

    Attributes:
        embeddings: `(B, M, D)`, or None.
        keys: one `(B, H, M, D)` a layer, not rotated, or none.
        values: the same for values.
        heads: one `(B, H, M)` a layer, which of them each head has; empty where every head has all.
    """

    embeddings: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    heads: tuple[Tensor, ...] = ()

    def scaled(self, gain: float) -> Delivered:
        """The same with soft tokens and values times a factor. Keys stay: they say where to look."""
        soft = None if self.embeddings is None else self.embeddings * gain
        return replace(self, embeddings=soft, values=tuple(value * gain for value in self.values))


class Adapter(nn.Module, ABC):
    """A module that turns `Latents` into what one reader gets of them."""

    @abstractmethod
    def forward(self, latents: Latents) -> Delivered:
        """What the reader gets."""

    def fuse(self, latents: Latents, own: Memory) -> Memory:
        """The reader's own keys and values of B texts, changed by latents; where the adapter `changes_text`."""
        raise NotImplementedError


class AdapterConfig(Kind, ABC):
    """The configuration of an adapter: a `kind`, its options, and `build` (or `fitted`)."""

    @property
    def changes_text(self) -> bool:
        """Whether latents change the keys and values that the reader has of the text, instead of standing alone.

        Then the wire's layout is `text`, and each token of the reader has one latent.
        """
        return False

    def build(self, source: int, lm: LM) -> Adapter:
        """The module for latents of one width.

        Args:
            source: width of a latent, all its tensors together. lm: the reader.
        """
        raise NotImplementedError

    def fitted(self, sample: Latents, lm: LM) -> Adapter:
        """The module for latents such as `sample`; override it where their width alone does not say enough.

        Raises:
            UserError: it cannot read such latents.
        """
        return self.build(sample.flat().shape[-1], lm)


class Film(nn.Module):
    """Scale and shift of channels by how many tokens a latent stands for; at first without effect (1709.07871)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(1, 2 * width)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, hidden: Tensor, latents: Latents) -> Tensor:
        """`(B, M, width)`, of hidden states `(B, M, width)`."""
        tokens_each = latents.length / latents.valid.sum(1).clamp_min(1)
        factor, offset = self.map(tokens_each.clamp_min(1e-6).log()[:, None, None]).chunk(2, -1)
        changed: Tensor = hidden * (1 + factor) + offset
        return changed


@torch.no_grad()
def kv_shape(lm: LM) -> tuple[int, int, int]:
    """A model's number of layers, of key/value heads, and the width of a head."""
    # Asked of the model itself: configurations name these in many ways, and some name what does not count.
    with evaluating(lm.model):
        keys = lm.memorize(Prefix.of_tokens([[0]], device=lm.device))[1].keys
    return len(keys), keys[0].shape[1], keys[0].shape[3]

"""What adapters have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.message import Latents


@dataclass(frozen=True, eq=False)
class Delivered:
    """What a reader gets. embeddings: `(B, M, D)`. keys (not rotated), values: one `(B, H, M, D)` a layer."""

    embeddings: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


class AdapterConfig(BaseModel):
    """Settings of an adapter, a class with a `kind` and `build(source, lm) -> nn.Module`, or `fitted`.

    source: the width of a latent, all its tensors together. The module turns `Latents` into `Delivered`; one
    that needs to know more of latents than their width is made in `fitted`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def build(self, source: int, lm: LM) -> nn.Module:
        """The module for latents of a width."""
        raise NotImplementedError

    def fitted(self, sample: Latents, lm: LM) -> nn.Module:
        """The module for latents such as `sample`. Raises `UserError` where it cannot read such."""
        return self.build(sample.flat().shape[-1], lm)


class Film(nn.Module):
    """Scale and shift of channels by how many tokens a latent stands for; at first without effect (1709.07871)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(1, 2 * width)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, hidden: Tensor, latents: Latents) -> Tensor:
        """`(B, M, width)` of as much."""
        share = latents.length / latents.valid.sum(1).clamp_min(1)
        factor, offset = self.map(share.clamp_min(1e-6).log()[:, None, None]).chunk(2, -1)
        changed: Tensor = hidden * (1 + factor) + offset
        return changed


@torch.no_grad()
def kv_shape(lm: LM) -> tuple[int, int, int]:
    """Layers, key/value heads and width of a head."""
    # Asked of the model itself: configurations name these in many ways, and some name what does not count.
    with evaluating(lm.model):
        keys = lm.memorize(Prefix.of_tokens([[0]], device=lm.device))[1].keys
    return len(keys), keys[0].shape[1], keys[0].shape[3]

"""The `projected` adapter: keys and values of every layer of a reader, each a linear map of a latent."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from latentwire.lm.model import LM
from latentwire.wires.latent.adapters.adapter import Adapter, AdapterConfig, Delivered
from latentwire.wires.latent.adapters.deep_prefix import statistics
from latentwire.wires.latent.message import Latents


class ProjectedConfig(AdapterConfig):
    """One linear map from a latent to each of a reader's layers, which ridge regression can solve for."""

    kind: Literal["projected"] = "projected"

    def build(self, source: int, lm: LM) -> ProjectedAdapter:
        return ProjectedAdapter(source, lm)


class ProjectedAdapter(Adapter):
    """Linear maps that begin with the mean of the reader's keys and values, and with their spread for unit
    latents.

    Attributes:
        shape: `(2, heads, width)` of a layer's output, keys (not rotated) before values.
    """

    def __init__(self, source: int, lm: LM) -> None:
        super().__init__()
        mean, deviation = statistics(lm)
        self.shape = tuple(mean.shape[1:])
        self.layers = nn.ModuleList(nn.Linear(source, each.numel()) for each in mean)
        with torch.no_grad():
            for layer, shift, scale in zip(self.maps, mean, deviation, strict=True):
                layer.weight.copy_(torch.randn_like(layer.weight) * scale.flatten()[:, None] * source**-0.5)
                layer.bias.copy_(shift.flatten())

    @property
    def maps(self) -> list[nn.Linear]:
        """The linear map of each layer, from a latent to `shape`."""
        return [each for each in self.layers if isinstance(each, nn.Linear)]

    def forward(self, latents: Latents) -> Delivered:
        flat = latents.flat().float()
        # (B, M, 2, H, D) each
        pairs: list[Tensor] = [layer(flat).unflatten(-1, self.shape) for layer in self.maps]
        keys = tuple(pair[:, :, 0].transpose(1, 2) for pair in pairs)
        return Delivered(keys=keys, values=tuple(pair[:, :, 1].transpose(1, 2) for pair in pairs))

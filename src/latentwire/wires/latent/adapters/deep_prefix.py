"""The `deep_prefix` adapter: keys and values of every layer of a reader, made from latents of any width."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.adapters.adapter import Adapter, AdapterConfig, Delivered, Film
from latentwire.wires.latent.message import Latents

CALIBRATION = (
    "The river runs past the old mill, and in the evening people walk along its bank.",
    "She bought twelve apples, gave five of them to her brother and kept the rest.",
    "Where is the library? It stands in the middle of the town, behind the market.",
    "In 1987 the company moved its office to the north, where rents were lower.",
)
"""Texts on which the size of a reader's keys and values is measured."""


class DeepPrefixConfig(AdapterConfig):
    """Keys and values of every layer, each layer with its own generator (P-Tuning v2; Cache-to-Cache).

    Attributes:
        hidden: width of the residual MLP that all layers share.
        dropout: in that MLP, in training.
        film: scale and shift its output by how many tokens a latent stands for.
    """

    kind: Literal["deep_prefix"] = "deep_prefix"
    hidden: int = Field(default=512, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    film: bool = False

    def build(self, source: int, lm: LM) -> Adapter:
        return DeepPrefixAdapter(self, source, lm)


class DeepPrefixAdapter(Adapter):
    """Generators whose channels begin with the mean and the deviation of the reader's own keys and values.

    Keys larger than the reader's own would draw all its attention before anything is learned, smaller ones none.
    `scale` and `shift`, `(layers, 2, heads, width)`, set both; they are learned and saved like the rest.
    """

    def __init__(self, settings: DeepPrefixConfig, source: int, lm: LM) -> None:
        super().__init__()
        mean, deviation = statistics(lm)
        self.shift, self.scale = nn.Parameter(mean), nn.Parameter(deviation)
        self.norm = nn.LayerNorm(source)
        self.skip = nn.Linear(source, settings.hidden, bias=False)
        self.inner, self.outer = (
            nn.Linear(source, settings.hidden),
            nn.Linear(settings.hidden, settings.hidden),
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.film = Film(settings.hidden) if settings.film else None
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(settings.hidden), nn.Linear(settings.hidden, each.numel())) for each in mean
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Sequential)
            last = layer[1]
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=settings.hidden**-0.5)
            nn.init.zeros_(last.bias)

    def forward(self, latents: Latents) -> Delivered:
        flat = self.norm(latents.flat().float())
        inner = self.dropout(F.gelu(self.inner(flat)))
        shared = self.skip(flat) + self.outer(inner)
        if self.film is not None:
            shared = self.film(shared, latents)
        pairs = [
            layer(shared).unflatten(-1, scale.shape) * scale + shift
            for layer, scale, shift in zip(self.layers, self.scale, self.shift, strict=True)
        ]
        # (B, M, 2, H, D) each
        keys = tuple(pair[:, :, 0].transpose(1, 2) for pair in pairs)
        return Delivered(keys=keys, values=tuple(pair[:, :, 1].transpose(1, 2) for pair in pairs))


@torch.no_grad()
def statistics(lm: LM) -> tuple[Tensor, Tensor]:
    """Mean and deviation `(layers, 2, heads, width)` of a reader's keys (not rotated) and values on `CALIBRATION`.

    The first column of each text is left out: the keys and values of an attention sink are unlike all others.
    """
    rows = [lm.format.before(text, lm) for text in CALIBRATION]
    prefix = Prefix.of_tokens(rows, device=lm.device)
    with evaluating(lm.model):
        memory = lm.memorize(prefix)[1]
    counted = prefix.columns.valid.clone()
    counted[:, 0] = False
    pairs = zip(memory.keys, memory.values, strict=True)
    # (N, 2, H, D) a layer
    found = [torch.stack([each.transpose(1, 2)[counted].float().cpu() for each in pair], 1) for pair in pairs]
    mean = torch.stack([each.mean(0) for each in found])
    return mean, torch.stack([each.std(0) for each in found])

"""The `fuse` adapter: a source's keys and values, added to the reader's own (Cache-to-Cache, 2510.03215)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.masks.reading import Memory
from latentwire.lm.model import LM
from latentwire.wires.latent.adapters.adapter import Adapter, AdapterConfig, Delivered, kv_shape
from latentwire.wires.latent.adapters.deep_prefix import statistics
from latentwire.wires.latent.message import Latents


class FuseConfig(AdapterConfig):
    """The reader reads the text, and each of its keys and values becomes own + tanh(gate) · map(source, own).

    The source's latents are keys and values, one for each token of the reader, and layers are fused in pairs.
    Nothing is added where a latent is all zeros or missing. So with the message `:zero`, or while its gates are
    shut, the reader reads the text alone.

    Attributes:
        hidden: inner width of each map.
        gate: initial value of the gates, one for each layer and head, for keys and for values.
        layers: by the reader's layer, the layer among those that cross that it is fused with, both counted from 0.
            None matches them from the last one backwards; left-over layers of the deeper model stay alone.
    """

    kind: Literal["fuse"] = "fuse"
    hidden: int = Field(default=256, ge=1)
    gate: float = 0.0
    layers: dict[int, int] | None = Field(default=None, min_length=1)

    @property
    def changes_text(self) -> bool:
        return True

    def fitted(self, sample: Latents, lm: LM) -> Adapter:
        if not sample.keys or sample.vectors is not None:
            raise UserError(
                "adapter: found fuse for latents that are vectors, expected keys and values, layer by layer "
                "(an encoder source with states: keys and translator: null, and no width)."
            )
        return FuseAdapter(self, sample, lm)

    def pairs(self, reader: int, source: int) -> dict[int, int]:
        """By the reader's layer, the source's layer.

        Args:
            reader, source: how many layers each has.

        Raises:
            UserError: `layers` names a layer that does not exist.
        """
        if self.layers is None:
            return {at: at - reader + source for at in range(max(0, reader - source), reader)}
        for at, of in self.layers.items():
            if not (0 <= at < reader and 0 <= of < source):
                raise UserError(
                    f"adapter: found layers {at}: {of}, expected one of the reader's {reader} layers and one of "
                    f"the {source} that cross."
                )
        return dict(self.layers)


class FuseAdapter(Adapter):
    """See `FuseConfig`.

    scales: `(layers, 2, heads, width)`, the spread of the reader's own, in which maps speak.
    """

    def __init__(self, settings: FuseConfig, sample: Latents, lm: LM) -> None:
        super().__init__()
        count, heads, width = kv_shape(lm)
        self._pairs = settings.pairs(count, len(sample.keys))
        spread = statistics(lm)[1]
        self.scales = nn.Parameter(spread[sorted(self._pairs)])
        self.gates = nn.Parameter(torch.full((len(self._pairs), 2, heads), settings.gate))
        own = heads * width
        theirs = [sample.keys[of].shape[1] * sample.keys[of].shape[3] for _, of in sorted(self._pairs.items())]
        self.maps = nn.ModuleList(
            nn.ModuleList(_Map(each, own, settings.hidden) for _ in range(2)) for each in theirs
        )

    def forward(self, latents: Latents) -> Delivered:
        raise UserError("adapter: found fuse without a text, expected one, since it delivers no latents alone.")

    def fuse(self, latents: Latents, own: Memory) -> Memory:
        """The reader's keys and values of B texts of T tokens, with each row's latents added in their order.

        Latents after the text's end are left out, and tokens after the last latent stay as they are.
        """
        keys, values = [each.float() for each in own.keys], [each.float() for each in own.values]
        for at, (layer, of) in enumerate(sorted(self._pairs.items())):
            for part, (found, sent) in enumerate(((keys, latents.keys[of]), (values, latents.values[of]))):
                theirs = _flat(_fitting(sent, found[layer].shape[2]).float())
                valid = _fitting(latents.valid[:, None, :, None], theirs.shape[1])[:, 0]
                said = valid & (theirs != 0).any(-1, keepdim=True)
                added = self.maps[at][part](theirs, _flat(found[layer]))  # type: ignore[index]
                heads = added.unflatten(-1, self.scales.shape[2:]) * self.scales[at, part]
                heads = heads * self.gates[at, part].tanh()[:, None] * said[..., None]
                found[layer] = found[layer] + heads.transpose(1, 2).float()
        return Memory(tuple(keys), tuple(values), own.columns)


class _Map(nn.Module):
    """A map from `(B, T, source)` and `(B, T, own)` to `(B, T, own)`, at first of deviation 1."""

    def __init__(self, source: int, own: int, hidden: int) -> None:
        super().__init__()
        self.theirs, self.own = nn.LayerNorm(source), nn.LayerNorm(own)
        self.inner, self.outer = nn.Linear(source + own, hidden), nn.Linear(hidden, own)
        nn.init.normal_(self.outer.weight, std=hidden**-0.5)
        nn.init.zeros_(self.outer.bias)

    def forward(self, theirs: Tensor, own: Tensor) -> Tensor:
        made: Tensor = self.outer(F.gelu(self.inner(torch.cat([self.theirs(theirs), self.own(own)], -1))))
        return made


def _flat(each: Tensor) -> Tensor:
    """`(B, H, T, D)` as `(B, T, H * D)`."""
    return each.transpose(1, 2).flatten(2)


def _fitting(each: Tensor, width: int) -> Tensor:
    """`(B, H, M, D)` cut to `width` columns, or padded with zeros."""
    return F.pad(each[:, :, :width], (0, 0, 0, max(0, width - each.shape[2])))

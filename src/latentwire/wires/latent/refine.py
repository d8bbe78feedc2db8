"""What happens to latents after the encoder: made narrower, refined, divided among readers."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.transformer import Bidirectional


class RefinerConfig(BaseModel):
    """The configuration of `Refiner`: layers in which a context's latents see each other before they cross.

    Attributes:
        layers: how many. heads: attention heads of each. dropout: in training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Refiner(nn.Module):
    """Makes latents narrower, if a width is given, and refines them, if a refiner is configured.

    Args:
        sample: latents as the encoder gives them.
        width: of the one vector that a linear map makes of all tensors of a latent; None leaves them as they are.
        refiner: the configuration, or None.

    Raises:
        UserError: a refiner for latents that are no vectors, or of a width that its heads do not divide.
    """

    def __init__(self, sample: Latents, width: int | None, refiner: RefinerConfig | None) -> None:
        super().__init__()
        source = sample.flat().shape[-1]
        # Keys, values and hidden states differ in size by orders of magnitude.
        self.down = None if width is None else nn.Sequential(nn.LayerNorm(source), nn.Linear(source, width))
        self.layers: Bidirectional | None = None
        if refiner is not None:
            if sample.keys and width is None:
                raise UserError("refiner: found latents of keys and values, expected vectors; `width` makes them.")
            found = width or source
            if found % refiner.heads:
                raise UserError(f"refiner: found {refiner.heads} heads, expected a divisor of the width {found}.")
            self.layers = Bidirectional(found, refiner.layers, refiner.heads, refiner.dropout)
            self.layers.begin_as_identity()

    def forward(self, latents: Latents) -> Latents:
        if self.down is not None:
            latents = replace(latents, vectors=self.down(latents.flat().float()), keys=(), values=())
        if self.layers is None:
            return latents
        assert latents.vectors is not None
        return replace(latents, vectors=self.layers(latents.vectors.float(), latents.valid))


def columns(latents: Latents, chosen: Tensor) -> Latents:
    """The latents at these indices `(N,)`, of every row."""
    return replace(
        latents,
        valid=latents.valid[:, chosen],
        positions=latents.positions[:, chosen],
        vectors=None if latents.vectors is None else latents.vectors[:, chosen],
        keys=tuple(each[:, :, chosen] for each in latents.keys),
        values=tuple(each[:, :, chosen] for each in latents.values),
        heads=tuple(each[:, :, chosen] for each in latents.heads),
    )


def seen_by(reader: int, readers: int, private: int, count: int) -> Tensor:
    """Indices of the latents that a reader sees: all of `count` but those private to other readers.

    Private latents are spread evenly, readers taking turns, so that each reader has some of its own everywhere.

    Args:
        reader: its number, of `readers`. private: how many latents each reader has for itself.
    """
    every = private * readers
    owned = [(2 * at + 1) * count // (2 * every) for at in range(every)]
    mine = owned[reader::readers]
    return torch.tensor([at for at in range(count) if at not in owned or at in mine])

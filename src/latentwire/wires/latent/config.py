"""What a latent wire is made of, as a study's YAML writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentwire.errors import UserError
from latentwire.wires.latent.adapters import Adapter, Native
from latentwire.wires.latent.checkpoint import CONFIG
from latentwire.wires.latent.encoders import Encoder, SelfEncoder
from latentwire.wires.latent.refine import Refiner


def _native() -> dict[str, Adapter]:
    return {"embedded:heron": Native()}


class LatentConfig(BaseModel):
    """What a latent wire is made of.

    source: the encoder's model, and its device. adapters: by reader, the models that read the wire
        (`embedded:heron`, a folder, a hub id). fingerprints: of the weights that the wire was trained with, by
        model; None before.
    width: of a latent as it crosses, made by a linear map of all that the encoder gives; None sends that itself.
    refiner: layers in which latents, being vectors, see each other before they cross.
    private: so many of a context's latents are each reader's own; the rest is seen by all.
    positions: where latents stand for the reader: `spread` over the source's span, with the question behind all
        of it (EPL, 2409.14364), or `contiguous`, with the question right behind them.
    bos_after_anchor: whether a reader's BOS token stands between the anchor and the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "embedded:heron"
    encoder: Encoder = SelfEncoder()
    width: int | None = Field(default=None, ge=1)
    refiner: Refiner | None = None
    private: int = Field(default=0, ge=0)
    adapters: dict[str, Adapter] = Field(default_factory=_native, min_length=1)
    positions: Literal["spread", "contiguous"] = "spread"
    bos_after_anchor: bool = False
    fingerprints: dict[str, str] | None = None

    @model_validator(mode="after")
    def _private_latents_exist(self) -> LatentConfig:
        needed, count = self.private * len(self.adapters), self.encoder.count
        if needed and count is None:
            raise ValueError(
                f"private: found {self.private} of latents whose number follows the context's length, "
                "expected an encoder with a fixed number of them"
            )
        if count is not None and needed > count:
            raise ValueError(
                f"private: found {self.private} for each of {len(self.adapters)} readers, expected at most the "
                f"{count} latents of the encoder"
            )
        return self


def read_config(folder: Path) -> LatentConfig:
    """The configuration of a saved wire. Raises `UserError` where there is none that can be read."""
    try:
        return LatentConfig.model_validate_json((folder / CONFIG).read_text())
    except OSError as error:
        raise UserError(f"wire: {folder} holds no {CONFIG}, expected the folder of a trained wire.") from error
    except ValidationError as error:
        raise UserError(f"wire: {folder / CONFIG} is not a wire's: {error.errors()[0]['msg']}.") from error

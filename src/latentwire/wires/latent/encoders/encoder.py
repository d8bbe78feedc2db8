"""What the encoders' configurations have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EncoderConfig(BaseModel):
    """Settings of an encoder, a class with a `kind` and `build(source) -> nn.Module`.

    The module takes B contexts and gives `Latents`; those of one context never depend on another's. Its
    attribute `frozen` names the models it stands on that are not saved, each with what computes its fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def count(self) -> int | None:
        """How many latents every context becomes; None where that depends on its length."""
        return None


class FixedCount(EncoderConfig):
    """An encoder that gives as many vectors whatever the length of its context.

    latents: M, how many. width: of each.
    """

    latents: int = Field(default=32, ge=1)
    width: int = Field(default=256, ge=1)

    @property
    def count(self) -> int | None:
        return self.latents


class Pooling(FixedCount):
    """An encoder that pools with learned queries.

    heads: of its attention. pool_layers: how often the queries look.
    """

    heads: int = Field(default=8, ge=1)
    pool_layers: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Pooling:
        if self.width % self.heads:
            raise ValueError(
                f"width: found {self.width} with {self.heads} heads, expected a multiple of the heads"
            )
        return self

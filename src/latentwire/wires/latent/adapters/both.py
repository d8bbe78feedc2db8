"""The `both` adapter: soft tokens in the input, and keys and values before them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from latentwire.lm.model import LM
from latentwire.wires.latent.adapters.adapter import Adapter, AdapterConfig, Delivered
from latentwire.wires.latent.adapters.deep_prefix import DeepPrefixConfig
from latentwire.wires.latent.adapters.embeddings import EmbeddingsConfig
from latentwire.wires.latent.adapters.native import NativeConfig
from latentwire.wires.latent.message import Latents


class BothConfig(AdapterConfig):
    """Each latent as a soft token and as keys and values at the same position; the tokens see the keys.

    Attributes:
        embeddings: makes the soft tokens. prefix: makes the keys and values.
    """

    kind: Literal["both"] = "both"
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    prefix: Annotated[NativeConfig | DeepPrefixConfig, Field(discriminator="kind")] = DeepPrefixConfig()

    def build(self, source: int, lm: LM) -> Adapter:
        return BothAdapter(self, source, lm)


class BothAdapter(Adapter):
    """Soft tokens and keys and values together."""

    def __init__(self, settings: BothConfig, source: int, lm: LM) -> None:
        super().__init__()
        self.embeddings, self.prefix = settings.embeddings.build(source, lm), settings.prefix.build(source, lm)

    def forward(self, latents: Latents) -> Delivered:
        soft, deep = self.embeddings(latents), self.prefix(latents)
        return Delivered(embeddings=soft.embeddings, keys=deep.keys, values=deep.values)

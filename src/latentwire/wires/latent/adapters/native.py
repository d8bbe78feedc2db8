"""The `native` adapter: the encoder's own keys and values."""

from __future__ import annotations

from typing import Literal

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.wires.latent.adapters.adapter import Adapter, AdapterConfig, Delivered, kv_shape
from latentwire.wires.latent.message import Latents


class NativeConfig(AdapterConfig):
    """Keys and values as the encoder gives them, for a reader with the same layers; nothing is trained."""

    kind: Literal["native"] = "native"

    def build(self, source: int, lm: LM) -> Adapter:
        return NativeAdapter(lm)


class NativeAdapter(Adapter):
    """Hands over keys and values that fit the reader as they are."""

    def __init__(self, lm: LM) -> None:
        super().__init__()
        self._layers, self._heads, self._width = kv_shape(lm)

    def forward(self, latents: Latents) -> Delivered:
        shape = (self._layers, self._heads, self._width)
        found = (len(latents.keys), *(latents.keys[0].shape[i] for i in (1, 3))) if latents.keys else (0, 0, 0)
        if found != shape:
            raise UserError(
                f"adapter: found native for {found} layers, heads and width, expected the reader's {shape}."
            )
        return Delivered(keys=latents.keys, values=latents.values, heads=latents.heads)

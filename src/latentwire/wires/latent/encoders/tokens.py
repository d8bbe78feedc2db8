"""The `tokens` encoder: learned queries over the token states of a frozen text model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from latentwire.lm.model import LM
from latentwire.wires.latent.encoders.encoder import Encoder, Pooling
from latentwire.wires.latent.encoders.frozen import FrozenText
from latentwire.wires.latent.encoders.pool import Pool
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.select import spread


class TokensConfig(Pooling):
    """M learned queries over the states of a frozen encoder or decoder.

    Attributes:
        model: the frozen model: a hub id, a folder, or `embedded:NAME`. It is fingerprinted, not saved.
    """

    kind: Literal["tokens"] = "tokens"
    model: str

    def build(self, source: LM) -> TokensEncoder:
        return TokensEncoder(self, source)


class TokensEncoder(Encoder):
    """Pools a frozen model's states. Positions and lengths are in its tokens."""

    def __init__(self, settings: TokensConfig, source: LM) -> None:
        super().__init__()
        self._text = FrozenText(settings.model, source.device)
        self.frozen = {settings.model: self._text.fingerprint}
        self.pool = Pool(
            self._text.width,
            settings.width,
            settings.latents,
            heads=settings.heads,
            layers=settings.pool_layers,
        ).to(source.device)

    def forward(self, contexts: Sequence[str]) -> Latents:
        """Latents of B contexts, M vectors each."""
        states, valid = self._text(contexts)
        vectors, length = self.pool(states, valid), valid.sum(1)
        positions = spread(length, vectors.shape[1])
        return Latents(valid=positions >= 0, positions=positions, length=length, vectors=vectors)

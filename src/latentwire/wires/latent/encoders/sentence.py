"""The `sentence` encoder: one embedding of the whole context, expanded (in the manner of xRAG, 2405.13792)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from latentwire.lm.model import LM
from latentwire.wires.latent.encoders.encoder import Encoder, FixedCount
from latentwire.wires.latent.encoders.frozen import FrozenText
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.select import spread


class SentenceConfig(FixedCount):
    """The mean of a frozen model's token states, normalised and expanded into M latents by a two-layer MLP.

    Attributes:
        model: the frozen model: a hub id, a folder, or `embedded:NAME`. It is fingerprinted, not saved.
        hidden: the MLP's inner width.
    """

    kind: Literal["sentence"] = "sentence"
    model: str
    hidden: int = Field(default=1024, ge=1)

    def build(self, source: LM) -> SentenceEncoder:
        return SentenceEncoder(self, source)


class SentenceEncoder(Encoder):
    """One embedding, expanded. Positions and lengths are in the frozen model's tokens."""

    def __init__(self, settings: SentenceConfig, source: LM) -> None:
        super().__init__()
        self._shape = (settings.latents, settings.width)
        self._text = FrozenText(settings.model, source.device)
        self.frozen = {settings.model: self._text.fingerprint}
        self.expand = nn.Sequential(
            nn.Linear(self._text.width, settings.hidden),
            nn.GELU(),
            nn.Linear(settings.hidden, settings.latents * settings.width),
        ).to(source.device)

    def forward(self, contexts: Sequence[str]) -> Latents:
        """Latents of B contexts, M vectors each."""
        states, valid = self._text(contexts)
        length = valid.sum(1)
        # Padding may hold anything, even NaN.
        mean = states.masked_fill(~valid[..., None], 0).sum(1) / length[:, None]
        # The channels of a vector of length one are too small for a layer as it is initialised.
        sentence = F.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5
        vectors = self.expand(sentence).unflatten(-1, self._shape)
        positions = spread(length, vectors.shape[1])
        return Latents(valid=positions >= 0, positions=positions, length=length, vectors=vectors)

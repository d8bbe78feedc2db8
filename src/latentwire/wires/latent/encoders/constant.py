"""The `constant` encoder: the same learned latents for every context, as in prefix tuning.

Trained like any other wire, it shows how much of a wire's gain comes without reading the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.encoders.encoder import Encoder, EncoderConfig
from latentwire.wires.latent.message import Latents


class ConstantConfig(EncoderConfig):
    """The same learned latents for every context.

    Attributes:
        tokens: how many latents.
        gives: hidden states, keys and values, or both.
    """

    kind: Literal["constant"] = "constant"
    tokens: int = Field(default=32, ge=1)
    gives: Literal["vectors", "keys", "both"] = "keys"

    @property
    def count(self) -> int | None:
        return self.tokens

    def build(self, lm: LM) -> ConstantEncoder:
        return ConstantEncoder(self, lm)


class ConstantEncoder(Encoder):
    """Learned latents, which begin as the model's states of random tokens.

    Random numbers would begin far from anything that a reader knows (Cartridges, 2506.06266).
    """

    def __init__(self, settings: ConstantConfig, lm: LM) -> None:
        super().__init__()
        drawn = torch.randint(len(lm.embeddings()), (settings.tokens,), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            hidden, memory = lm.memorize(Prefix.of_tokens([drawn.tolist()], device=lm.device))
        keyed = settings.gives != "vectors"
        self.vectors = nn.Parameter(hidden[0].float()) if settings.gives != "keys" else None
        self.keys = nn.ParameterList([each[0].float() for each in memory.keys] if keyed else [])
        self.values = nn.ParameterList([each[0].float() for each in memory.values] if keyed else [])
        self._tokens, self._lm = settings.tokens, lm

    def forward(self, contexts: Sequence[str]) -> Latents:
        """The same latents for each of B contexts; not even a context's length crosses."""
        return self.forward_ids([[]] * len(contexts))

    def forward_ids(self, rows: Sequence[Sequence[int]]) -> Latents:
        """`forward`, for contexts that are tokenized already."""
        count, dtype = len(rows), self._lm.model.dtype
        at = torch.arange(self._tokens, device=self._lm.device).expand(count, -1)
        return Latents(
            valid=torch.ones_like(at, dtype=torch.bool),
            positions=at,
            length=torch.full((count,), self._tokens, device=at.device),
            vectors=None if self.vectors is None else self.vectors.to(dtype).expand(count, -1, -1),
            keys=tuple(each.to(dtype).expand(count, -1, -1, -1) for each in self.keys),
            values=tuple(each.to(dtype).expand(count, -1, -1, -1) for each in self.values),
        )

"""The `mlp` translator: each latent sees only the columns that it is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.wires.latent.translators.translator import States, Translator, TranslatorConfig


class MlpConfig(TranslatorConfig):
    """The mean of a latent's columns through a residual two-layer MLP.

    Attributes:
        hidden: the MLP's inner width.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=512, ge=1)

    def build(self, source: int, width: int, slots: int) -> MlpTranslator:
        if slots:
            raise UserError("translator: mlp makes latents of columns, found a fixed number, expected anchors.")
        return MlpTranslator(self, source, width)


class MlpTranslator(Translator):
    """A linear map, `skip`, plus a two-layer MLP."""

    def __init__(self, settings: MlpConfig, source: int, width: int) -> None:
        super().__init__()
        self.skip = nn.Linear(source, width)
        self.inner, self.outer = nn.Linear(source, settings.hidden), nn.Linear(settings.hidden, width)

    def forward(self, states: States) -> Tensor:
        assert states.weights is not None
        pooled = states.weights @ states.content
        made: Tensor = self.skip(pooled) + self.outer(nn.functional.gelu(self.inner(pooled)))
        return made

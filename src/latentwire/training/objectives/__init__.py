"""Objectives of a wire's training, by family. A new one is a class with a `kind`, and a line in `Objective`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from latentwire.training.objectives.answers import AnswerCrossEntropy, Contrast, FirstTokens, GrowingTokens
from latentwire.training.objectives.contexts import Gist, Reconstruct
from latentwire.training.objectives.flow import FlowMatching
from latentwire.training.objectives.imitation import Imitate
from latentwire.training.objectives.messages import Align, InfoNce, Manifold, Scale
from latentwire.training.objectives.teaching import Distill, DistillHidden
from latentwire.training.objectives.term import Term

__all__ = [
    "Align",
    "AnswerCrossEntropy",
    "Contrast",
    "Distill",
    "DistillHidden",
    "FirstTokens",
    "FlowMatching",
    "Gist",
    "GrowingTokens",
    "Imitate",
    "InfoNce",
    "Manifold",
    "Objective",
    "Reconstruct",
    "Scale",
    "Term",
]

Objective = Annotated[
    AnswerCrossEntropy
    | FirstTokens
    | GrowingTokens
    | Distill
    | DistillHidden
    | Contrast
    | Scale
    | Align
    | Manifold
    | InfoNce
    | Reconstruct
    | Gist
    | Imitate
    | FlowMatching,
    Field(discriminator="kind"),
]

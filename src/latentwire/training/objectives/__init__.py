"""Objectives of every training. A new one is a class with a `kind`, and a line in `Objective`.

Those on answers (`answers`, `teaching`) train wires and models alike. Those with `needs_message` look at a wire's
latents, so a finetuning refuses them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from latentwire.kinds import KindOf
from latentwire.training.objectives.answer_objectives import (
    AnswerCrossEntropy,
    Contrast,
    FirstTokens,
    GrowingTokens,
)
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
    "Objectives",
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
    KindOf(Term),
]


def _each_kind_once(value: tuple[Objective, ...]) -> tuple[Objective, ...]:
    kinds = [objective.kind for objective in value]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise ValueError(f"found {twice!r} twice, expected every objective once")
    if value[0].auto:
        raise ValueError(f"found auto on the first, {kinds[0]!r}, expected it on others only")
    return value


Objectives = Annotated[tuple[Objective, ...], Field(min_length=1), AfterValidator(_each_kind_once)]
"""The objectives of one training, the first of which sets the scale of those with `auto`."""

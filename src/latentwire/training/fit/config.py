"""The typed settings of a wire's training, as a study's YAML writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from latentwire.tasks.world.reading import TIERS, Tier
from latentwire.training.config import Loop, Settings
from latentwire.training.fit.objectives import AnswerCrossEntropy, Distill, Objective
from latentwire.wires.latent.modules import LatentConfig


class WorldPassages(Settings):
    """Passages of the made-up world with all questions of some tiers; evaluation takes the validation split."""

    kind: Literal["world"] = "world"
    tiers: tuple[Tier, ...] = TIERS


class TaskPassages(Settings):
    """Any task with contexts and answers in words; examples that share a context are asked together.

    data: the task's file, where it is read from one.
    """

    kind: Literal["task"]
    task: str
    data: Path | None = None


PassageData = Annotated[WorldPassages | TaskPassages, Field(discriminator="kind")]


class Fit(Loop):
    """One training of a latent wire; its readers stay frozen.

    passages: contexts a step. questions: at most so many a context and step. contexts: how many different contexts
        there are; None makes as many as the steps need.
    """

    wire: LatentConfig = LatentConfig()
    data: PassageData = WorldPassages()
    objectives: tuple[Objective, ...] = Field(default=(AnswerCrossEntropy(weight=0.5), Distill()), min_length=1)
    contexts: int | None = Field(default=None, ge=1)
    passages: int = Field(default=128, ge=1)
    questions: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1.5e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup_steps: int = Field(default=200, ge=0)

    @field_validator("objectives")
    @classmethod
    def _each_kind_once(cls, value: tuple[Objective, ...]) -> tuple[Objective, ...]:
        kinds = [each.kind for each in value]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(f"found {twice!r} twice, expected every objective once")
        return value

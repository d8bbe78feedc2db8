"""The typed settings of a wire's training, as a study's YAML writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from latentwire.tasks.world.reading import TIERS, Tier
from latentwire.training.config import Settings, Stopping
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


class Fit(Settings):
    """One training of a latent wire; its readers stay frozen.

    passages: contexts a step. questions: at most so many a context and step. contexts: how many different contexts
        there are; None makes as many as the steps need. optimizer: `muon` orthogonalizes the steps of matrices.
    """

    wire: LatentConfig = LatentConfig()
    data: PassageData = WorldPassages()
    objectives: tuple[Objective, ...] = (AnswerCrossEntropy(weight=0.5), Distill())
    contexts: int | None = Field(default=None, ge=1)
    eval_samples: int = Field(default=500, ge=1)
    steps: int = Field(ge=1)
    passages: int = Field(default=128, ge=1)
    questions: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1.5e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup_steps: int = Field(default=200, ge=0)
    final_share: float = Field(default=0.0, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    log_steps: int = Field(default=10, ge=1)
    eval_steps: int = Field(default=100, ge=1)
    samples: int = Field(default=4, ge=0)
    stopping: Stopping = Stopping()
    seed: int = 0

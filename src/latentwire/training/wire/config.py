"""The typed settings of a wire's training, as a study's YAML writes them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from latentwire.lm.loading.lora import Lora
from latentwire.training.config import Loop
from latentwire.training.data import PassageData
from latentwire.training.data.world import WorldPassages
from latentwire.training.objectives import AnswerCrossEntropy, Distill, Objectives
from latentwire.training.schedules import annealed
from latentwire.training.settings import Settings
from latentwire.wires.latent.modules import LatentConfig
from latentwire.wires.latent.ridge import Ridge


class KeepProb(Settings):
    """Latent dropout: each latent is delivered with this probability, drawn anew for every context and step.

    start: at the first step. final: at the last one, on a cosine between; None keeps it frozen at the start's.
    """

    start: float = Field(default=1.0, gt=0, le=1)
    final: float | None = Field(default=None, gt=0, le=1)

    def at(self, share: float) -> float:
        return annealed(self.start, self.final, share)


class TextSteps(Settings):
    """Steps in which the trained readers read the text instead of the latents, so that they stay at home in it.

    probability: of such a step at first. tail: from `steps` steps on, with a cosine between.
    """

    probability: float = Field(default=1.0, ge=0, le=1)
    tail: float = Field(default=0.05, ge=0, le=1)
    steps: int = Field(ge=1)

    def at(self, step: int) -> float:
        return annealed(self.probability, self.tail, step / self.steps)


class Fit(Loop):
    """One training of a latent wire; its readers' own weights stay frozen.

    passages: contexts a step. questions: at most so many a context and step. contexts: how many different contexts
        there are; None makes as many as the steps need. A wire that carries whole prompts has as many of
        those, each with its one question.
    reader_lora, reader_prefix: low-rank adapters, or so many virtual tokens of prefix tuning, that the readers
        learn along with the wire (stage B); they are saved with it.
    new_reader: train the adapter of this reader alone, one more for a finished wire: all else stays as it is.
    ridge: begin a bridge as the linear map that regression finds, on contexts of the training.
    """

    wire: LatentConfig = LatentConfig()
    data: PassageData = WorldPassages()
    objectives: Objectives = (AnswerCrossEntropy(weight=0.5), Distill())
    contexts: int | None = Field(default=None, ge=1)
    passages: int = Field(default=128, ge=1)
    questions: int = Field(default=8, ge=1)
    keep_prob: KeepProb = KeepProb()
    text_steps: TextSteps | None = None
    reader_lora: Lora | None = None
    reader_prefix: int | None = Field(default=None, ge=1)
    new_reader: str | None = None
    ridge: Ridge | None = None
    learning_rate: float = Field(default=1.5e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup_steps: int = Field(default=200, ge=0)

    @property
    def readers(self) -> list[str]:
        """The readers that learn: all of the wire's, or the new one."""
        return list(self.wire.adapters) if self.new_reader is None else [self.new_reader]

    @model_validator(mode="after")
    def _new_reader_learns_alone(self) -> Self:
        if self.new_reader is None:
            return self
        if self.new_reader not in self.wire.adapters:
            raise ValueError(
                f"new_reader: found {self.new_reader!r}, expected a reader with an adapter in "
                f"wire.adapters: {', '.join(self.wire.adapters)}"
            )
        if self.reader_lora is not None or self.reader_prefix is not None:
            raise ValueError(
                "new_reader: found reader_lora or reader_prefix beside it, expected neither: a new reader learns "
                "its adapter alone"
            )
        return self

    @model_validator(mode="after")
    def _text_steps_teach(self) -> Self:
        if self.text_steps is None:
            return self
        if self.reader_lora is None and self.reader_prefix is None:
            raise ValueError(
                "text_steps: found readers that stay as they are, expected reader_lora or reader_prefix, "
                "since nothing else learns from a step that reads the text"
            )
        if all(each.needs_message for each in self.objectives):
            raise ValueError("text_steps: found only objectives on latents, expected one on answers")
        return self


PRESETS: dict[str, dict[str, int]] = {
    "smoke": {
        "steps": 20,
        "passages": 8,
        "questions": 4,
        "contexts": 64,
        "warmup_steps": 4,
        "eval_samples": 16,
        "eval_steps": 10,
        "log_steps": 1,
    },
    "hero": {
        "steps": 8000,
        "passages": 128,
        "questions": 8,
        "warmup_steps": 400,
        "eval_samples": 1000,
        "eval_steps": 500,
    },
}
"""Sizes of a training, and nothing else of it. smoke: does it run, in seconds on two cores. hero: four times the
steps of the template `latent-wire`, with a finer evaluation."""

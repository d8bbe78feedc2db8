"""The typed settings of a wire's training, as a study's YAML writes them."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from latentwire.lm.loading.lora import Lora
from latentwire.training.data import PassageData
from latentwire.training.data.world import WorldPassages
from latentwire.training.loop_config import Loop
from latentwire.training.objectives import AnswerCrossEntropy, Distill, Objectives
from latentwire.training.schedules import annealed
from latentwire.training.settings import Settings
from latentwire.wires.latent.modules import LatentConfig
from latentwire.wires.latent.ridge import Ridge


class KeepProb(Settings):
    """Latent dropout: each latent is delivered with a probability, drawn anew for every context and step.

    Attributes:
        start: the probability at the first step.
        final: the probability at the last step, on a cosine between the two; None keeps it constant.
    """

    start: float = Field(default=1.0, gt=0, le=1)
    final: float | None = Field(default=None, gt=0, le=1)

    def at(self, share: float) -> float:
        """The probability once `share` of the steps, 0 to 1, are done."""
        return annealed(self.start, self.final, share)


class TextSteps(Settings):
    """Steps in which trained readers read the text instead of the latents, so that they do not unlearn it.

    Attributes:
        probability: how likely such a step is at first.
        tail: how likely it is from step `steps` on, with a cosine between the two.
        steps: the step from which on `tail` holds.
    """

    probability: float = Field(default=1.0, ge=0, le=1)
    tail: float = Field(default=0.05, ge=0, le=1)
    steps: int = Field(ge=1)

    def at(self, step: int) -> float:
        """How likely a step is to read the text."""
        return annealed(self.probability, self.tail, step / self.steps)


class WireTraining(Loop):
    """One training of a latent wire; its readers' own weights stay frozen.

    Attributes:
        wire: the wire that is trained.
        data: what it is trained on.
        objectives: the terms of the loss.
        contexts: how many different contexts there are; None makes as many as the steps need. A wire that carries
            whole prompts has this many prompts, each with its one question.
        passages: contexts in each step.
        questions: at most this many for each context and step.
        step_tokens: instead of `passages`, fill each step with contexts of similar length up to this many tokens,
            padding included. `passages` is then the size of evaluation batches, and the estimate by which `steps`
            says how much data is generated.
        activation_checkpointing: the layers of encoder and readers keep their input only and run again in the
            backward pass; None does so where a step would not fit into memory otherwise.
        compile: the layers of encoder and readers are compiled, which takes a minute or more before the first
            steps are fast; it pays on a GPU, for models whose steps are bound by launches. Sums are rounded in
            other places.
        keep_prob: dropout of latents.
        text_steps: steps in which trained readers read the text.
        reader_lora, reader_prefix: low-rank adapters, or this many virtual tokens of prefix tuning, trained in the
            readers together with the wire (stage B) and saved with it.
        new_reader: train only the adapter of this reader, which is added to a finished wire.
        ridge: start a bridge from the linear map that regression finds, on contexts of the training.
    """

    wire: LatentConfig = LatentConfig()
    data: PassageData = WorldPassages()
    objectives: Objectives = (AnswerCrossEntropy(weight=0.5), Distill())
    contexts: int | None = Field(default=None, ge=1)
    passages: int = Field(default=128, ge=1)
    questions: int = Field(default=8, ge=1)
    step_tokens: int | None = Field(default=None, ge=1)
    activation_checkpointing: bool | None = None
    compile: bool = False
    keep_prob: KeepProb = KeepProb()
    text_steps: TextSteps | None = None
    reader_lora: Lora | None = None
    reader_prefix: int | None = Field(default=None, ge=1)
    new_reader: str | None = None
    ridge: Ridge | None = None
    learning_rate: float = Field(default=1.5e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup_steps: int = Field(default=200, ge=0)

    @model_serializer(mode="wrap")
    def _settings_of_speed_count_where_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A run's identity is made of these settings: one that was done before these three existed stays done.
        fields: dict[str, Any] = serialize(self)
        unset = {"step_tokens": None, "activation_checkpointing": None, "compile": False}
        return {name: value for name, value in fields.items() if name not in unset or value is not unset[name]}

    @property
    def frozen_dtype(self) -> torch.dtype:
        """What frozen models are held in: in bf16 training, float32 weights would be copied in every pass."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def readers(self) -> list[str]:
        """Names of the readers that are trained for: all of the wire's, or the new one."""
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

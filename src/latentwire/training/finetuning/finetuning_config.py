"""The typed settings of a finetuning, as a study's YAML writes them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from latentwire import wires
from latentwire.lm.loading.lora import Lora
from latentwire.training.data import DocumentData
from latentwire.training.data.world import WorldData
from latentwire.training.loop_config import Loop
from latentwire.training.objectives import AnswerCrossEntropy, Objectives


class Finetuning(Loop):
    """One finetuning of a model over one wire.

    Attributes:
        wire: The wire over which prompts are read, in its command-line spelling; it must deliver plain tokens.
        force_leaky: Train although the wire leaks labels.
        data: The examples to learn from.
        train_samples: How many of them to draw; None takes as many as the steps need.
        rows: Packed rows in a step.
        row_tokens: Their length in tokens.
        objectives: The terms of the loss; the teacher of `distill` and `distill_hidden` is the model as it was
            before training, reading the same rows causally.
        lora: Train low-rank adapters; None trains all weights.
        attention: The kernel that reads the rows; `auto` takes the fastest that is right and says why.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping them.
        weights: What all weights are kept in while they are trained. `bfloat16` takes half the memory: each weight
            is updated in float32 and rounded stochastically.
        release_gradients: Use and free each gradient inside the backward pass; `clip` then holds for each weight's
            own gradient.
        export_dtype: What exported checkpoints are written in; None writes the weights as they are.
    """

    wire: str = "text"
    force_leaky: bool = False
    data: DocumentData = WorldData()
    objectives: Objectives = (AnswerCrossEntropy(),)
    train_samples: int | None = Field(default=None, ge=1)
    rows: int = Field(default=8, ge=1)
    row_tokens: int = Field(default=1024, ge=16)
    lora: Lora | None = None
    attention: Literal["auto", "sdpa", "eager", "flex", "split"] = "auto"
    activation_checkpointing: bool = False
    weights: Literal["float32", "bfloat16"] = "float32"
    release_gradients: bool = False
    export_dtype: Literal["float32", "bfloat16"] | None = None

    @property
    def one_by_one(self) -> bool:
        return self.weights == "bfloat16" or self.release_gradients

    @property
    def releases(self) -> bool:
        return self.release_gradients

    @model_validator(mode="after")
    def _options_of_full_weights(self) -> Self:
        if self.lora is not None and self.release_gradients:
            raise ValueError(
                "release_gradients: found true beside lora, expected false: adapters are few, and their gradients "
                "take little memory"
            )
        if self.lora is not None and self.weights == "bfloat16":
            raise ValueError(
                "weights: found bfloat16 beside lora, expected float32: adapters are few, and trained in float32"
            )
        if self.weights == "bfloat16" and self.precision != "bf16":
            raise ValueError(f"precision: found {self.precision} beside weights: bfloat16, expected bf16")
        if self.release_gradients and self.accumulation > 1:
            raise ValueError(
                f"release_gradients: found true beside accumulation: {self.accumulation}, expected accumulation: "
                "1: a gradient that is used at once cannot be summed over passes"
            )
        return self

    @field_validator("objectives")
    @classmethod
    def _only_on_answers(cls, value: Objectives) -> Objectives:
        strange = next((objective.kind for objective in value if objective.needs_message), None)
        if strange is not None:
            raise ValueError(
                f"found {strange!r}, which looks at the latents of a wire, and a finetuning has none; expected "
                "answer_ce, first_tokens, growing_tokens, distill or distill_hidden"
            )
        return value

    @model_validator(mode="after")
    def _passes_have_rows(self) -> Self:
        if self.accumulation > self.rows:
            raise ValueError(f"accumulation: found {self.accumulation}, expected at most the {self.rows} rows")
        return self

    @field_validator("wire")
    @classmethod
    def _known_wire(cls, value: str) -> str:
        return wires.parse(value).label

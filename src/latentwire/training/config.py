"""The typed settings of a finetuning, as a study's YAML writes them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from latentwire import wires
from latentwire.lm.loading.lora import Lora
from latentwire.training.data import DocumentData
from latentwire.training.data.world import WorldData
from latentwire.training.settings import Settings


class Stopping(Settings):
    """When to end before the last step.

    patience: plateau, so many evaluations without an improvement of `min_delta` nats, never before `min_steps`.
    no_signal_steps: no learning signal, the smoothed train loss is not `min_delta` below its start by then.
    worse_evaluations: the evaluation loss has risen so many times running.
    collapse_ratio, collapse_steps: a train loss below this share of its start within so many steps is
        implausible, and reported as a suspected leak.
    """

    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=0.002, ge=0)
    min_steps: int = Field(default=0, ge=0)
    no_signal_steps: int | None = Field(default=None, ge=1)
    worse_evaluations: int | None = Field(default=None, ge=1)
    collapse_ratio: float | None = Field(default=0.02, gt=0, lt=1)
    collapse_steps: int = Field(default=50, ge=1)


class Loop(Settings):
    """What every training has: steps, their size, their rate, and when to look.

    accumulation splits a step into as many passes. eval_samples are held out, the same ones at every evaluation.
    precision: bf16 is autocast over float32 weights.
    """

    eval_samples: int = Field(default=500, ge=1)
    steps: int = Field(ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = Field(default=3e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_share: float = Field(default=0.05, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    log_steps: int = Field(default=10, ge=1)
    eval_steps: int = Field(default=100, ge=1)
    samples: int = Field(default=4, ge=0)
    stopping: Stopping = Stopping()
    seed: int = 0


class Finetuning(Loop):
    """One finetuning of a model over one wire.

    rows and row_tokens: packed rows a step and their length in tokens. train_samples: how many examples to draw
    from the data. attention: the kernel that reads the rows; auto takes the fastest that is right and says why.
    """

    wire: str = "text"
    force_leaky: bool = False
    data: DocumentData = WorldData()
    train_samples: int | None = Field(default=None, ge=1)
    rows: int = Field(default=8, ge=1)
    row_tokens: int = Field(default=1024, ge=16)
    lora: Lora | None = None
    attention: Literal["auto", "sdpa", "eager", "flex", "split"] = "auto"
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _passes_have_rows(self) -> Self:
        if self.accumulation > self.rows:
            raise ValueError(f"accumulation: found {self.accumulation}, expected at most the {self.rows} rows")
        return self

    @field_validator("wire")
    @classmethod
    def _known_wire(cls, value: str) -> str:
        return wires.parse(value).label

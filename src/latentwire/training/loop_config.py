"""The typed settings that every training has, as a study's YAML writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from latentwire.training.settings import Settings, fastest


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Stopping(Settings):
    """When to end before the last step.

    Attributes:
        min_delta: The smallest change of a loss, in nats, that counts as an improvement.
        min_steps: No plateau is called before this step.
        patience: Plateau: stop after N evaluations without an improvement of `min_delta` nats, never before
            `min_steps`.
        no_signal_steps: No learning signal: stop if the smoothed train loss is not `min_delta` below its start by
            then.
        worse_evaluations: Stop if the evaluation loss has risen N times in a row.
        collapse_ratio: A train loss below this share of its start within `collapse_steps` steps is implausible,
            and reported as a suspected leak.
        collapse_steps: The steps in which `collapse_ratio` applies.
    """

    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=0.002, ge=0)
    min_steps: int = Field(default=0, ge=0)
    no_signal_steps: int | None = Field(default=None, ge=1)
    worse_evaluations: int | None = Field(default=None, ge=1)
    collapse_ratio: float | None = Field(default=0.02, gt=0, lt=1)
    collapse_steps: int = Field(default=50, ge=1)


Metric = Literal["loss", "first_token", "exact_match", "f1"]
"""By what a checkpoint can be the best: evaluation loss, accuracy of first answer tokens, or what is generated."""
GENERATED = ("exact_match", "f1")


class Loop(Settings):
    """What every training has: steps, their size, their rate, and when to look.

    Attributes:
        eval_samples: Held-out examples, the same ones at every evaluation.
        steps: Optimizer steps.
        accumulation: Passes that a step is split into.
        optimizer: `adafactor` keeps its second moments factored, `adamw8bit` its state in 8 bits (bitsandbytes, on
            a GPU).
        learning_rate: The highest learning rate, reached after the warmup.
        weight_decay: Decoupled decay of the trained weights.
        schedule: How the learning rate falls after the warmup.
        warmup_steps: Steps in which the learning rate rises linearly from 0.
        final_share: The last learning rate, as a share of the highest; `constant` ignores it.
        clip: The largest norm of a step's gradient; larger ones are scaled down to it.
        precision: `bf16` is autocast over float32 weights; `fastest` is the one that this machine computes faster.
        log_steps: Write a line of diagnostics every this many steps.
        eval_steps: Evaluate every this many steps.
        generate_steps: Also generate answers to held-out examples every this many steps, and measure exact match
            and F1, beside those of the model before training that reads the text; None never does.
        generate_samples: How many examples are answered then.
        best: What the best checkpoint is best in. Of several metrics the first decides what `best` holds, and each
            other one is kept as `best_METRIC`.
        save_steps: Write a snapshot to resume from every this many steps; None writes one at every evaluation.
        save_minutes: Also write one when this much time has passed since the last.
        keep_snapshots: How many of these are kept; the older ones serve where the newest is damaged. 0 keeps none:
            an interrupted training begins anew, and the disk never holds an optimizer's state.
        samples: Sample answers written at every evaluation.
        stopping: When to end before the last step.
        seed: Of the order of the data and of every random draw; the study's seed where it is not set.
    """

    eval_samples: int = Field(default=500, ge=1)
    steps: int = Field(ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "adafactor", "adamw8bit"] = "adamw"
    learning_rate: float = Field(default=3e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_share: float = Field(default=0.05, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    precision: Annotated[
        Literal["fp32", "bf16"],
        BeforeValidator(fastest("bf16", "fp32"), json_schema_input_type=Literal["fp32", "bf16", "fastest"]),
    ] = "fp32"
    log_steps: int = Field(default=10, ge=1)
    eval_steps: int = Field(default=100, ge=1)
    generate_steps: int | None = Field(default=None, ge=1)
    generate_samples: int = Field(default=64, ge=1)
    best: Annotated[
        tuple[Metric, ...],
        BeforeValidator(_listed, json_schema_input_type=Metric | tuple[Metric, ...]),
        Field(min_length=1),
    ] = ("loss",)
    save_steps: int | None = Field(default=None, ge=1)
    save_minutes: float | None = Field(default=None, gt=0)
    keep_snapshots: int = Field(default=1, ge=0)
    samples: int = Field(default=4, ge=0)
    stopping: Stopping = Stopping()
    seed: int = 0

    @property
    def one_by_one(self) -> bool:
        """Weights are updated one at a time in float32; see `training.optimizers.OneByOne`."""
        return False

    @property
    def releases(self) -> bool:
        """Each gradient is used and freed inside the backward pass."""
        return False

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        generated = next((metric for metric in self.best if metric in GENERATED), None)
        if generated is not None and self.generate_steps is None:
            raise ValueError(
                f"best: found {generated!r}, which needs generated answers, expected generate_steps to say how "
                "often to generate them"
            )
        if len(set(self.best)) < len(self.best):
            raise ValueError(f"best: found {', '.join(self.best)}, expected each metric once")
        return self

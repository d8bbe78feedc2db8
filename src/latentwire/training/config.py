"""The typed settings that every training has, as a study's YAML writes them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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

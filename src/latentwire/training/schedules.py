"""Rates, weights and probabilities as functions of the step."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_share(
    kind: Literal["cosine", "linear", "constant"], step: int, steps: int, warmup: int, final_share: float
) -> float:
    """The share of the peak learning rate at `step` (from 0): linear warm-up, then the named decay.

    `cosine` and `linear` approach `final_share` of the peak, which the step after the last one would have;
    `constant` stays.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    left = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done
    return final_share + (1 - final_share) * left


def annealed(start: float, final: float | None, share: float) -> float:
    """`start` at share 0, `final` from share 1 on, on a cosine between; without a final value it stays."""
    if final is None:
        return start
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

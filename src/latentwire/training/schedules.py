"""Learning rates, weights, probabilities and random seeds as functions of the step."""

from __future__ import annotations

import hashlib
import math
from typing import Literal


def learning_rate_share(
    kind: Literal["cosine", "linear", "constant"], step: int, steps: int, warmup: int, final_share: float
) -> float:
    """The share of the peak learning rate at a step: linear warm-up, then the named decay.

    Args:
        kind: `cosine` and `linear` decay to `final_share`, which the step after the last one would have;
            `constant` stays at the peak.
        step: From 0.
        steps: Of the whole training.
        warmup: Steps of the warm-up.
        final_share: Share of the peak at the end, 0 to 1.

    Example:
        >>> learning_rate_share("linear", 5, steps=10, warmup=0, final_share=0.0)
        0.5
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    left = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done
    return final_share + (1 - final_share) * left


def annealed(start: float, final: float | None, share: float) -> float:
    """`start` at share 0 and `final` from share 1 on, on a cosine between them; None for `final` keeps `start`."""
    if final is None:
        return start
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def seed_of(seed: int, name: str) -> int:
    """Every random draw is a function of the study's seed and of what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")

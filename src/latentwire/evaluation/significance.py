"""p-values: a sign-flip test over groups, and Holm's correction for several comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from latentwire.evaluation.group_intervals import Array

_CHUNK = 250  # draws held at once
_NORMAL = 1_000  # more different sizes than these: their signed sum is normal
_ROUNDING = 1e-12  # a smaller difference between two floating-point sums is rounding
_EXACT_GROUPS = 14  # 2^14 sign patterns are as quick as the 10,000 draws that replace them above


def sign_flip(contributions: Array, seed: int, draws: int = 10_000) -> float:
    """Two-sided p-value of "each group's difference may as well have the other sign".

    The statistic is |Σ contributions|. Exact over all sign patterns for at most 14 groups with a
    difference; else Monte Carlo, (1 + hits) / (1 + draws), which never returns 0 (Phipson and Smyth
    2010); with more than 1,000 different sizes the statistic is normal, with Σ contributions² as its variance.

    Args:
        contributions: shape (groups,), what each group adds to the difference.

    Example:
        >>> sign_flip(np.ones(6), seed=0)
        0.03125
    """
    sizes = np.abs(contributions)
    observed = abs(contributions.sum()) - _ROUNDING
    sizes = sizes[sizes > _ROUNDING]
    if len(sizes) <= _EXACT_GROUPS:
        patterns = 2 * (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1) - 1
        return float(np.mean(np.abs(patterns @ sizes) >= observed))
    # Groups of equal size are interchangeable: only the number of flipped ones matters.
    kinds, numbers = np.unique(sizes, return_counts=True)
    if len(kinds) > _NORMAL:
        return float(2 * stats.norm.sf(observed / np.sqrt((sizes**2).sum())))
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, draws, _CHUNK):
        flipped = rng.binomial(numbers, 0.5, (min(_CHUNK, draws - start), len(kinds)))
        hits += int(np.sum(np.abs((2 * flipped - numbers) @ kinds) >= observed))
    return (1 + hits) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979).

    Each may be compared with 0.05: the chance of any false rejection among them stays below 5 %.

    Example:
        >>> holm([0.04, 0.01])
        [0.04, 0.02]

    Raises:
        ValueError: one is not a probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie in [0, 1], found {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

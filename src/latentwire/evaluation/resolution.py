"""What difference a sample can resolve: known before a study starts, from how many questions it asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

DISCORDANT = 0.2
"""The share of questions that two arms are taken to answer differently, before anything is known of them."""
POWER = 0.8


@dataclass(frozen=True)
class Resolution:
    """What a paired comparison on so many questions can resolve.

    Attributes:
        n: questions.
        groups: groups of questions that share a passage.
        unresolved: half the 95 % interval: an observed difference below it is not resolved.
        detected: the true difference that is resolved with 80 % probability.
        discordant: the assumed share of questions that the arms answer differently.
    """

    n: int
    groups: int
    unresolved: float
    detected: float
    discordant: float

    def __str__(self) -> str:
        return f"{self.n:,} questions: differences under {_points(self.unresolved)} points will not be resolved"


def planned(n: int, groups: int | None = None, discordant: float = DISCORDANT) -> Resolution:
    """What `n` questions will resolve, if the arms answer a share `discordant` of them differently.

    The variance of a paired difference is `discordant / n`, where the arms are about equal. Questions of one group
    are taken as independent, so this is the best case: where all questions of a group turn out alike, the sample
    resolves what `planned(groups)` says.

    Args:
        n: questions.
        groups: groups of questions; as many as questions if not given.
        discordant: share of questions that the arms answer differently.

    Example:
        >>> str(planned(200)), str(planned(1319))
        ('200 questions: differences under 6.2 points will not be resolved', ...2.4 points...)

    Raises:
        ValueError: fewer than two questions, or no share in (0, 1].
    """
    if n < 2 or not 0 < discordant <= 1:
        raise ValueError(f"expected two questions and a share in (0, 1], found {n} and {discordant}")
    error = float(np.sqrt(discordant / n))
    quantiles = stats.t.ppf([0.975, POWER], n - 1)
    return Resolution(
        n=n,
        groups=n if groups is None else groups,
        unresolved=min(1.0, float(quantiles[0]) * error),
        detected=min(1.0, float(quantiles.sum()) * error),
        discordant=discordant,
    )


def sentences(samples: Iterable[tuple[str, int, int]], discordant: float = DISCORDANT) -> list[str]:
    """A line for each size of sample, for the log before a study starts.

    Args:
        samples: by task its name, how many questions it has, and how many groups.
        discordant: as for `planned`.
    """
    alike: dict[tuple[int, int], list[str]] = {}
    for name, n, groups in samples:
        if n >= 2:
            alike.setdefault((n, groups), []).append(name)
    lines = []
    for (n, groups), names in alike.items():
        resolution = planned(n, groups, discordant)
        shared = ""
        if 2 <= groups < n:
            worst = _points(planned(groups, discordant=discordant).unresolved)
            shared = f" ({worst} where all questions of a passage turn out alike: {groups:,} passages)"
        lines.append(
            f"{', '.join(names)}: {resolution}{shared}; a true difference of "
            f"{_points(resolution.detected)} is resolved with {POWER:.0%} probability (if two arms answer "
            f"{discordant:.0%} of the questions differently)"
        )
    return lines


def resolvable(error: float, freedom: float, n: int, largest: float = 1.0) -> float:
    """The smallest true difference that is resolved with 80 % probability, given the standard error.

    The positive root of δ² = t²·(error² + δ(1 − δ)/n), t the sum of Student's quantiles for 97.5 % and 80 %: a
    true difference turns a share δ of the n answers, and so adds to the variance.

    Args:
        error: the standard error of the difference.
        freedom: its degrees of freedom.
        n: independent examples.
        largest: the largest possible difference.
    """
    if not np.isfinite(error) or freedom <= 0:
        return largest
    t2 = float(stats.t.ppf([0.975, POWER], freedom).sum()) ** 2
    if not np.isfinite(largest):
        return float(np.sqrt(t2) * error) if error else largest
    root = t2 / n + np.sqrt((t2 / n) ** 2 + 4 * (1 + t2 / n) * t2 * error**2)
    return min(largest, float(root / (2 * (1 + t2 / n))))


def _points(share: float) -> str:
    return f"{100 * share:.1f}"

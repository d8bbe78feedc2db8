"""95 % intervals of means over groups: exact ones for shares and their combinations, Student's for other metrics.

One metric of one arm, or one combination of several arms, is a `Table`: sums and counts by group and task.
Examples of one group (a passage) are never taken for independent ones. Nothing is drawn at random.

A share has the interval of Korn and Graubard (1998): Clopper and Pearson's exact one for as many independent
examples as have the same variance over groups. A combination that can be negative is split, group by group, into
what is above zero and what is below; each part is a share with an interval of its own, and MOVER puts them
together, as it does for the mean over tasks (Zou and Donner 2008; Zou, Huang and Zhang 2009). So no interval
shrinks to a point because a sample
happens to agree: what was not seen is bounded by what as many groups could have missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]

ALPHA = 0.05
_ROUNDING = 1e-12  # a smaller difference between two floating-point sums is rounding


@dataclass(frozen=True, kw_only=True)
class Table:
    """`sums[g, t]` of a metric over the `counts[g, t]` examples of group g in task t.

    Attributes:
        sums: shape (groups, tasks).
        counts: shape (groups, tasks); every task has an example.
        weights: shape (tasks,), of the means over tasks; they sum to one.
        floors, ceilings: shape (tasks,), the bounds of one example's metric; infinite where it has none.
    """

    sums: Array
    counts: Array
    weights: Array
    floors: Array
    ceilings: Array

    @property
    def means(self) -> Array:
        """The mean over the examples of each task, shape (tasks,)."""
        means: Array = self.sums.sum(0) / self.counts.sum(0)
        return means

    @property
    def value(self) -> float:
        """Σ_t weights[t] · means[t]."""
        return float(self.means @ self.weights)

    @property
    def contributions(self) -> Array:
        """What each group adds to the value, shape (groups,); they sum to it."""
        contributions: Array = (self.sums / self.counts.sum(0)) @ self.weights
        return contributions

    @property
    def floor(self) -> float:
        """The smallest value that is possible."""
        return float(self.floors @ self.weights)

    @property
    def ceiling(self) -> float:
        """The largest value that is possible."""
        return float(self.ceilings @ self.weights)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, and the standard error over groups (0 where all groups agree)."""

    low: float
    high: float
    error: float


def interval(table: Table) -> Interval:
    """The 95 % interval of `table.value`.

    With bounds, each task gives one or two shares of its range (see the module), and their intervals are combined
    with the correlations of the groups' contributions. Without bounds, it is Student's over groups, and infinite
    where the
    groups cannot show how far they differ: a single group, or groups that all agree.

    Example:
        >>> one = np.ones((20, 1))
        >>> interval(Table(sums=one, counts=one, weights=one[0], floors=0 * one[0], ceilings=one[0])).low
        0.8315...
    """
    if not np.isfinite([table.floor, table.ceiling]).all():
        return _student(table)
    parts = _Parts.of(table)
    if not parts.weights.size:  # constants: nothing can differ
        return Interval(table.value, table.value, 0.0)
    down = parts.combined(parts.means - parts.lows, parts.highs - parts.means)
    up = parts.combined(parts.highs - parts.means, parts.means - parts.lows)
    low, high = max(table.floor, table.value - down), min(table.ceiling, table.value + up)
    return Interval(low, high, _error(table))


@dataclass(frozen=True)
class _Parts:
    """The shares that a table's value is the weighted sum of: above and below zero, task by task.

    Attributes:
        means, lows, highs: shape (parts,), in the metric's unit.
        weights: shape (parts,), negative for what is below zero.
        correlations: shape (parts, parts).
    """

    means: Array
    lows: Array
    highs: Array
    weights: Array
    correlations: Array

    @classmethod
    def of(cls, table: Table) -> _Parts:
        tasks = len(table.weights)
        # What cannot change sign has one part: it is counted from its bound that is nearest to zero.
        zero = np.clip(0.0, table.floors, table.ceilings)
        excess = table.sums - zero * table.counts
        sums = np.hstack([np.maximum(excess, 0.0), np.maximum(-excess, 0.0)])
        counts = np.hstack([table.counts, table.counts])
        rooms = np.concatenate([table.ceilings - zero, zero - table.floors])
        used = rooms > _ROUNDING
        examples, groups = counts.sum(0), (counts > 0).sum(0)
        means = sums.sum(0) / examples
        deviations = (sums - means * counts) / examples
        constant = (np.abs(sums - means * counts) < _ROUNDING).all(0)
        variances = np.where(constant, 0.0, (deviations**2).sum(0) * groups / np.maximum(groups - 1, 1))
        unit = np.where(used, rooms, 1.0)
        lows, highs = share_interval(means / unit, variances / unit**2, examples, groups)
        norms = np.where(constant, np.inf, np.sqrt((deviations**2).sum(0)))
        correlations = (deviations / norms).T @ (deviations / norms)
        np.fill_diagonal(correlations, 1.0)
        # Where all groups are alike above zero, one that is not falls below it by the same event.
        alike = constant & (means > _ROUNDING)
        for task in range(tasks):
            if alike[task] or alike[task + tasks]:
                correlations[task, task + tasks] = correlations[task + tasks, task] = -1.0
        return cls(
            means[used],
            (lows * unit)[used],
            (highs * unit)[used],
            np.concatenate([table.weights, -table.weights])[used],
            correlations[np.ix_(used, used)],
        )

    def combined(self, towards: Array, away: Array) -> float:
        """How far the value may be off on one side (MOVER). towards: the distances to that side of each part."""
        distances = self.weights * np.where(self.weights > 0, towards, away)
        return math.sqrt(max(0.0, float(distances @ self.correlations @ distances)))


def share_interval(shares: Array, variances: Array, examples: Array, groups: Array) -> tuple[Array, Array]:
    """95 % intervals of shares that were estimated from groups (Korn and Graubard 1998).

    The number of independent examples that give the same variance takes the place of `examples` in Clopper and
    Pearson's interval, corrected for estimating that variance from few groups. Where all groups agree there is no
    variance, and the interval is what as many groups could have missed; for shares of 0 and 1 that is Clopper and
    Pearson's over groups.

    Args:
        shares: in [0, 1].
        variances: of the shares, estimated over groups; 0 where all groups agree.
        examples, groups: how many there are.

    Returns:
        The lower and the upper bounds.
    """
    missed = 1 - (ALPHA / 2) ** (1 / groups)
    spread = variances > 0
    few = np.maximum(groups - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        design = variances * np.maximum(examples - 1, 1) / (shares * (1 - shares))
        effective = examples / design * (_student_quantile(examples - 1) / _student_quantile(few)) ** 2
    effective = np.where(spread, effective, 1.0)
    right, wrong = np.where(spread, shares, 0.5) * effective, np.where(spread, 1 - shares, 0.5) * effective
    lows = np.where(spread, special.betaincinv(right, wrong + 1, ALPHA / 2), shares * (1 - missed))
    highs = np.where(spread, special.betaincinv(right + 1, wrong, 1 - ALPHA / 2), shares + missed * (1 - shares))
    return np.minimum(lows, shares), np.maximum(highs, shares)


def _student_quantile(freedom: Array) -> Array:
    quantile: Array = special.stdtrit(np.maximum(freedom, 1), 1 - ALPHA / 2)
    return quantile


def _error(table: Table) -> float:
    """The standard error of the value over groups, 0 where all groups agree; infinite for a single group."""
    groups = (table.counts > 0).sum(0)
    deviations = table.sums - table.means * table.counts
    deviations[np.abs(deviations) < _ROUNDING] = 0.0
    if (groups < 2).any():
        return float("inf")
    scaled = deviations / table.counts.sum(0) * np.sqrt(groups / (groups - 1))
    return float(np.sqrt(((scaled @ table.weights) ** 2).sum()))


def _student(table: Table) -> Interval:
    error = _error(table)
    if error == 0 or not np.isfinite(error):
        return Interval(-np.inf, np.inf, error)
    freedom = int((table.counts > 0).sum(0).min()) - 1
    width = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    return Interval(table.value - width, table.value + width, error)

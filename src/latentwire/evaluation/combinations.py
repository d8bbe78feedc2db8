"""Sums, differences and ratios of several arms on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from latentwire.evaluation.group_intervals import Array, Interval, Table, interval
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.statistics import aligned

Weights = Mapping[str, float]
"""A linear combination: arms by name, each with its factor."""

_STEPS = 16  # halvings of a bracket: an end of a ratio's interval is right to 2^-16 of its distance


@dataclass(frozen=True)
class Combination:
    """A combination's value and 95 % interval.

    All None where a ratio's denominator is not resolved above 0; an end alone where there is no bound.
    """

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Combination(None, None, None)


@dataclass(frozen=True)
class PairedArms:
    """Arms on the same examples, by name.

    Attributes:
        sums: shape (arms, groups, tasks), the sums of their scores.
        lows, highs: shape (arms, tasks), the bounds of one example's score.
        table: the first arm's table, whose counts and weights hold for all.

    Example:
        >>> arms = PairedArms.of({"wire": wire_outcomes, "text": text_outcomes})
        >>> arms.ratio({"wire": 1}, {"text": 1}).value
        0.92
    """

    names: tuple[str, ...]
    sums: Array
    lows: Array
    highs: Array
    table: Table

    @classmethod
    def of(cls, arms: Mapping[str, Sequence[Outcome]]) -> Self:
        """Arms by the primary metrics of their outcomes.

        Raises:
            ValueError: their examples differ or a metric is not a share in [0, 1].
        """
        sums, table = aligned(list(arms.values()))
        lows, highs = np.zeros((len(arms), sums.shape[2])), np.ones((len(arms), sums.shape[2]))
        return cls(tuple(arms), sums, lows, highs, table)

    def with_mixed(self, name: str, picks: Sequence[str | float]) -> Self:
        """These arms and one more that is, task by task, one of them or a constant score.

        Args:
            picks: an arm's name or a number for every task, tasks in the order of their names.
        """
        constants = np.array([pick if isinstance(pick, float) else 0.0 for pick in picks])
        sums, low, high = self.table.counts * constants, constants.copy(), constants.copy()
        for task, pick in enumerate(picks):
            if isinstance(pick, str):
                arm = self.names.index(pick)
                sums[:, task] = self.sums[arm, :, task]
                low[task], high[task] = self.lows[arm, task], self.highs[arm, task]
        return replace(
            self,
            names=(*self.names, name),
            sums=np.concatenate([self.sums, sums[None]]),
            lows=np.vstack([self.lows, low]),
            highs=np.vstack([self.highs, high]),
        )

    def means(self, name: str) -> Array:
        """An arm's mean score by task, tasks in the order of their names, shape (tasks,)."""
        means: Array = self.sums[self.names.index(name)].sum(0) / self.table.counts.sum(0)
        return means

    def value(self, name: str) -> float:
        """An arm's value: its mean over tasks, each family counting once."""
        return float(self.means(name) @ self.table.weights)

    def linear(self, weights: Weights) -> Combination:
        """Σ factor · arm, with the interval of `evaluation.group_intervals`."""
        table, found = self._interval(self._factors(weights))
        return Combination(table.value, found.low, found.high)

    def ratio(self, numerator: Weights, denominator: Weights) -> Combination:
        """Numerator over denominator. Its interval holds the ratios r for which numerator − r · denominator
        is not resolved from 0 (Fieller 1954, with the intervals of `evaluation.group_intervals` for his normal
        ones).

        Undefined where the denominator is not resolved above 0.
        """
        over, under = self._factors(numerator), self._factors(denominator)
        bottom, spread = self._interval(under)
        if spread.low <= 0:
            return UNDEFINED

        def holds(ratio: float) -> bool:
            found = self._interval(over - ratio * under)[1]
            return found.low <= 0 <= found.high

        value = self._interval(over)[0].value / bottom.value
        return Combination(value, _end(holds, value, -1.0), _end(holds, value, 1.0))

    def _factors(self, weights: Weights) -> Array:
        factors = np.zeros(len(self.names))
        for name, factor in weights.items():
            factors[self.names.index(name)] += factor
        return factors

    def _interval(self, factors: Array) -> tuple[Table, Interval]:
        """The arms' combination by factors."""
        ends = factors[:, None] * self.lows, factors[:, None] * self.highs
        floors, ceilings = np.minimum(*ends).sum(0), np.maximum(*ends).sum(0)
        table = replace(self.table, sums=np.tensordot(factors, self.sums, 1), floors=floors, ceilings=ceilings)
        return table, interval(table)


def _end(holds: Callable[[float], bool], value: float, direction: float) -> float | None:
    """The end of the interval around `value` in a direction, by bisection; None if it has none."""
    inside, step = value, 0.05 * direction
    while holds(value + step):
        inside, step = value + step, 2 * step
        if abs(step) > 1e6:
            return None
    outside = value + step
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside

"""Sums, differences and ratios of several arms on the same examples, all from the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.resampling import Array, Interval, Table, draw, freedom, interval
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
class Arms:
    """Arms by name: sums `(arms, groups, tasks)` with the bounds of one example's score, `(arms, tasks)` each.

    `table` holds the examples that the arms share.
    """

    names: tuple[str, ...]
    sums: Array
    lows: Array
    highs: Array
    table: Table
    seed: int
    resamples: int = 2000

    @classmethod
    def of(cls, arms: Mapping[str, Sequence[Outcome]], resamples: int = 2000) -> Self:
        """Arms by the primary metrics of their outcomes.

        Raises ValueError if their examples differ or a metric is not a share in [0, 1].
        """
        sums, table, seed = aligned(list(arms.values()))
        lows, highs = np.zeros((len(arms), sums.shape[2])), np.ones((len(arms), sums.shape[2]))
        return cls(tuple(arms), sums, lows, highs, table, seed, resamples)

    def with_mixed(self, name: str, picks: Sequence[str | float]) -> Self:
        """These arms and one more that is, task by task, one of them or a constant score.

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
        """An arm's mean score by task, tasks in the order of their names."""
        means: Array = self.sums[self.names.index(name)].sum(0) / self.table.counts.sum(0)
        return means

    def value(self, name: str) -> float:
        """An arm's value: its mean over tasks, each family counting once."""
        return float(self.means(name) @ self.table.weights)

    def linear(self, weights: Weights) -> Combination:
        """Σ factor · arm, its interval that of `bootstrap` with the arms resampled together."""
        factors = self._factors(weights)
        table, found = self._interval(factors, np.tensordot(factors, self.sums, 1), lambda: self._draws @ factors)
        return Combination(table.value, found.low, found.high)

    def ratio(self, numerator: Weights, denominator: Weights) -> Combination:
        """Numerator over denominator. Its interval holds the ratios r for which numerator − r · denominator
        is not resolved from 0 (Fieller 1954, with bootstrap intervals for his normal ones).

        Undefined where the denominator is not resolved above 0.
        """
        over, under = self._factors(numerator), self._factors(denominator)
        sums_over, sums_under = (np.tensordot(factors, self.sums, 1) for factors in (over, under))
        draws_over, draws_under = self._draws @ over, self._draws @ under
        top, _ = self._interval(over, sums_over, lambda: draws_over)
        bottom, spread = self._interval(under, sums_under, lambda: draws_under)
        if spread.low <= 0:
            return UNDEFINED

        def holds(ratio: float) -> bool:
            factors, sums = over - ratio * under, sums_over - ratio * sums_under
            found = self._interval(factors, sums, lambda: draws_over - ratio * draws_under)[1]
            return found.low <= 0 <= found.high

        value = top.value / bottom.value
        return Combination(value, _end(holds, value, -1.0), _end(holds, value, 1.0))

    @cached_property
    def _draws(self) -> Array:
        return draw(self.sums, self.table, self.seed, self.resamples)

    @cached_property
    def _freedom(self) -> int:
        return freedom(self.table)

    def _factors(self, weights: Weights) -> Array:
        factors = np.zeros(len(self.names))
        for name, factor in weights.items():
            factors[self.names.index(name)] += factor
        return factors

    def _interval(self, factors: Array, sums: Array, draws: Callable[[], Array]) -> tuple[Table, Interval]:
        """The arms' combination by factors, whose sums and resampled values are given."""
        ends = factors[:, None] * self.lows, factors[:, None] * self.highs
        floors, ceilings = np.minimum(*ends).sum(0), np.maximum(*ends).sum(0)
        counts, weights = self.table.counts, self.table.weights
        low, high = float(floors @ weights), float(ceilings @ weights)
        table = Table(sums=sums, counts=counts, weights=weights, floor=low, ceiling=high)
        return table, interval(table, self._freedom, floors, ceilings, draws)


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

"""Arms whose weights were trained with several seeds, pooled: a hierarchical bootstrap over seeds and groups.

All seeds answer the same examples, so seeds and groups are crossed. Every draw takes groups with replacement, the
same ones for all arms and seeds (Owen 2007), and moves each arm by an error of its mean over seeds. That error is
drawn from Student's t with as many degrees of freedom as there are seeds but one, scaled by the spread between the
seeds. Taking three seeds with replacement instead shows two thirds of their variance and no tails, and such
intervals hold the truth too seldom (`tests/evaluation/test_pooled.py` simulates both).

An interval is never narrower than that of the seeds' mean over groups alone (`evaluation.group_intervals`), which
does not shrink to a point where all groups agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from latentwire.evaluation.combinations import UNDEFINED, Combination, PairedArms, Weights
from latentwire.evaluation.group_intervals import Array, Table, interval
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.resolution import resolvable
from latentwire.evaluation.scores import Scores, seed
from latentwire.evaluation.statistics import Comparison, Estimate, compare, estimate, shared

BySeed = Mapping[str, Sequence[Outcome]]
"""One arm's outcomes by seed, on the same examples. One entry: an arm of which there is only one."""
DRAWS = 10_000
_CHUNK = 500  # draws held at once


@dataclass(frozen=True)
class PooledEstimate(Estimate):
    """An estimate over several seeds.

    Attributes:
        seeds: how many.
        spread: the standard deviation between them, 0 for one.
    """

    seeds: int = 1
    spread: float = 0.0

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.seeds} seed{'s' * (self.seeds > 1)}"


@dataclass(frozen=True)
class PooledComparison(Comparison):
    """A comparison of arms over several seeds.

    Attributes:
        seeds_a, seeds_b: how many seeds each arm has.
        paired_seeds: whether the same seeds were compared one by one.
    """

    seeds_a: int = 1
    seeds_b: int = 1
    paired_seeds: bool = False

    def __str__(self) -> str:
        if self.seeds_a == self.seeds_b == 1:
            return super().__str__()
        seeds = f"{self.seeds_a}" if self.paired_seeds else f"{self.seeds_a} and {self.seeds_b}"
        return f"{super().__str__()} over {seeds} seeds"


def estimate_pooled(arm: BySeed, metric: str | None = None) -> PooledEstimate:
    """The mean of an arm over seeds with its 95 % interval over seeds and groups.

    Args:
        arm: outcomes by seed.
        metric: the primary one of each task if not named.

    Example:
        >>> str(estimate_pooled({"0": first, "1": second, "2": third}))
        '0.402 [0.352, 0.452] n=600, 3 seeds'

    Raises:
        ValueError: as `statistics.estimate`, or the seeds answered other examples.
    """
    if len(arm) == 1:
        return PooledEstimate(**vars(estimate(next(iter(arm.values())), metric)))
    crossed = _Crossed.of([(arm, 1.0)], metric)
    low, high, _ = crossed.interval()
    table = crossed.table
    spread = float(np.std(crossed.by_seed[0], ddof=1))
    n, groups = int(table.counts.sum()), len(table.counts)
    return PooledEstimate(table.value, low, high, n, groups, seeds=len(arm), spread=spread)


def compare_pooled(a: BySeed, b: BySeed, metric: str | None = None) -> PooledComparison:
    """The difference a − b of two arms over seeds and groups, on the same examples.

    Arms with the same seeds are compared seed by seed; with other seeds, or other numbers of them, each arm's
    seeds are independent of the other's. An arm with a single entry adds no spread between seeds: say so where it
    was trained. With one entry each, this is `statistics.compare`.

    Args:
        a: outcomes by seed.
        b: outcomes by seed.
        metric: the primary one of each task if not named.

    Example:
        >>> compare_pooled({"0": a0, "1": a1, "2": a2}, {"0": b0, "1": b1}).seeds_b
        2

    Raises:
        ValueError: as `statistics.compare`.
    """
    if len(a) == len(b) == 1:
        (first,), (second,) = a.values(), b.values()
        return PooledComparison(**vars(compare(first, second, metric)))
    paired = len(a) > 1 and a.keys() == b.keys()
    crossed = _Crossed.of([(a, 1.0), (b, -1.0)], metric, paired=paired)
    low, high, p = crossed.interval()
    table = crossed.table
    error, freedom = crossed.error()
    n = round(1 / float(np.sum(table.weights**2 / table.counts.sum(0))))
    return PooledComparison(
        difference=table.value + 0.0,
        low=low,
        high=high,
        p=p,
        resolvable=resolvable(error, freedom, n, table.ceiling),
        n=int(table.counts.sum()),
        groups=len(table.counts),
        seeds_a=len(a),
        seeds_b=len(b),
        paired_seeds=paired,
    )


def shared_by_seed(arms: Sequence[BySeed]) -> list[dict[str, list[Outcome]]]:
    """The outcomes of each arm and seed on the examples that all of them have answered."""
    kept = iter(shared([list(outcomes) for arm in arms for outcomes in arm.values()]))
    return [{name: next(kept) for name in arm} for arm in arms]


@dataclass(frozen=True)
class _Crossed:
    """A signed sum of arms, crossed with seeds.

    Attributes:
        table: of the arms' means over seeds, added up.
        by_seed: what varies between seeds, one row of values for each source of it.
        draw_seed: what the draws begin with.
    """

    table: Table
    by_seed: list[Array]
    draw_seed: int

    @classmethod
    def of(cls, arms: Sequence[tuple[BySeed, float]], metric: str | None, *, paired: bool = False) -> Self:
        columns = [[Scores.of(outcomes) for outcomes in arm.values()] for arm, _ in arms]
        first = columns[0][0]
        ordered = [[one.values(metric)[one.in_order_of(first)] for one in each] for each in columns]
        signs = [sign for _, sign in arms]
        mean = sum(sign * np.mean(each, axis=0) for sign, each in zip(signs, ordered, strict=True))
        bounded = first.bounded(metric)
        largest = 1.0 if bounded else np.inf
        table = first.table(np.asarray(mean), 0.0 if len(arms) == 1 and bounded else -largest, largest)

        def value(rows: Array) -> float:
            return first.table(rows, -largest, largest).value

        values = [
            np.array([sign * value(rows) for rows in each]) for sign, each in zip(signs, ordered, strict=True)
        ]
        sources = [np.sum(values, axis=0)] if paired else [each for each in values if len(each) > 1]
        scores = [one for each in columns for one in each]
        return cls(table, sources, seed(scores, metric))

    def error(self) -> tuple[float, float]:
        """The standard error over groups and seeds, and its degrees of freedom (Satterthwaite 1946)."""
        groups = len(self.table.counts)
        parts = [(interval(self.table).error ** 2, max(groups - 1, 1))]
        parts += [(float(np.var(each, ddof=1)) / len(each), len(each) - 1) for each in self.by_seed]
        variance = sum(part for part, _ in parts)
        if variance == 0 or not np.isfinite(variance):
            return float(np.sqrt(variance)), float(max(groups - 1, 1))
        return float(np.sqrt(variance)), variance**2 / sum(part**2 / freedom for part, freedom in parts)

    def interval(self) -> tuple[float, float, float]:
        """The ends of the 95 % interval, and the two-sided p-value of a value of 0."""
        rng = np.random.default_rng(self.draw_seed)
        draws = drawn(self.table.sums[None], self.table, rng)[:, 0]
        for each in self.by_seed:
            draws += np.std(each, ddof=1) / np.sqrt(len(each)) * rng.standard_t(len(each) - 1, len(draws))
        low, high = np.quantile(draws, [0.025, 0.975])
        alone = interval(self.table)
        if np.isfinite([alone.low, alone.high]).all():
            low, high = min(low, alone.low), max(high, alone.high)
        tail = min(np.sum(draws <= 0), np.sum(draws >= 0))
        ends = max(self.table.floor, float(low)), min(self.table.ceiling, float(high))
        return *ends, min(1.0, 2 * (1 + float(tail)) / (1 + len(draws)))


def drawn(sums: Array, table: Table, rng: np.random.Generator) -> Array:
    """Bootstrap draws over groups of several arms' values, the same groups for all arms.

    Args:
        sums: shape (arms, groups, tasks), of scores.
        table: the counts of examples by group and task, and the weights of tasks.
        rng: where the draws come from.

    Returns:
        Shape (`DRAWS`, arms).
    """
    draws = DRAWS
    groups = len(table.counts)
    centre: Array = (sums.sum(1) / table.counts.sum(0)) @ table.weights
    if groups < 2:
        return np.tile(centre, (draws, 1))
    chunks = []
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        taken = rng.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(float)
        counts = np.einsum("dg,gt->dt", taken, table.counts)
        # A task none of whose groups was taken says nothing: its observed mean stands.
        means = np.einsum("dg,agt->dat", taken, sums) / np.where(counts > 0, counts, np.inf)[:, None]
        means = np.where(counts[:, None] > 0, means, sums.sum(1) / table.counts.sum(0))
        chunks.append(means @ table.weights)
    every: Array = np.concatenate(chunks)
    # Groups taken with replacement show (groups - 1) / groups of their variance.
    widened: Array = centre + (every - centre) * np.sqrt(groups / (groups - 1))
    return widened


@dataclass(frozen=True)
class PooledArms:
    """Arms on the same examples over the same seeds, by name; an arm of one entry is the same under every seed.

    Attributes:
        mean: the arms, each the mean over its seeds.
        seeds: the arms under each seed.

    Example:
        >>> arms = PooledArms.of({"wire": {"0": a0, "1": a1, "2": a2}, "text": {"": text}})
        >>> arms.ratio({"wire": 1}, {"text": 1}).value
        0.92
    """

    mean: PairedArms
    seeds: tuple[PairedArms, ...]

    @classmethod
    def of(cls, arms: Mapping[str, BySeed]) -> Self:
        """From outcomes by arm and seed.

        Raises:
            ValueError: two arms have several seeds and not the same ones, or as `PairedArms.of`.
        """
        seeded = [tuple(each) for each in arms.values() if len(each) > 1]
        if len(set(seeded)) > 1:
            raise ValueError(f"expected the same seeds in every arm, found {' and '.join(map(str, set(seeded)))}")
        names = seeded[0] if seeded else ("",)
        one = {name: next(iter(each.values())) for name, each in arms.items()}
        by_seed = tuple(
            PairedArms.of({name: each.get(key, one[name]) for name, each in arms.items()}) for key in names
        )
        return cls(replace(by_seed[0], sums=np.mean([each.sums for each in by_seed], axis=0)), by_seed)

    def with_mixed(self, name: str, picks: Sequence[str | float]) -> Self:
        """As `PairedArms.with_mixed`, under every seed."""
        mixed = tuple(each.with_mixed(name, picks) for each in self.seeds)
        return type(self)(self.mean.with_mixed(name, picks), mixed)

    def means(self, name: str) -> Array:
        """An arm's mean score by task, shape (tasks,)."""
        return self.mean.means(name)

    def value(self, name: str) -> float:
        """An arm's mean over tasks and seeds."""
        return self.mean.value(name)

    def linear(self, weights: Weights) -> Combination:
        """Σ factor · arm over seeds and groups."""
        alone = self.mean.linear(weights)
        if len(self.seeds) == 1:
            return alone
        low, high = np.quantile(self._draws([weights])[:, 0], [0.025, 0.975])
        return _wider(alone, float(low), float(high))

    def ratio(self, numerator: Weights, denominator: Weights) -> Combination:
        """Numerator over denominator: both from the same draws of groups and seeds.

        Undefined where the denominator is not resolved above 0. With one seed it is Fieller's (`PairedArms`).
        """
        alone = self.mean.ratio(numerator, denominator)
        if len(self.seeds) == 1 or alone.value is None:
            return alone
        over, under = self._draws([numerator, denominator]).T
        if np.mean(under <= 0) >= 0.025:
            return UNDEFINED
        # Draws beyond zero are the far ends of an interval that has none there.
        low, high = np.quantile(np.where(under > 0, over / under, np.sign(over) * np.inf), [0.025, 0.975])
        return _wider(alone, float(low), float(high))

    def _draws(self, combinations: Sequence[Weights]) -> Array:
        """Joint draws of several combinations, shape (draws, combinations)."""
        factors = np.array([[each.get(name, 0.0) for name in self.mean.names] for each in combinations])
        rng = np.random.default_rng(_seed_of(combinations))
        draws = drawn(np.tensordot(factors, self.mean.sums, 1), self.mean.table, rng)
        values = np.array([[factor @ _values(each) for factor in factors] for each in self.seeds])
        count = len(self.seeds)
        spread = np.cov(values, rowvar=False, ddof=1).reshape(len(factors), -1) / count
        normal = rng.multivariate_normal(np.zeros(len(factors)), spread, len(draws), method="eigh")
        heavy = np.sqrt((count - 1) / rng.chisquare(count - 1, len(draws)))
        moved: Array = draws + normal * heavy[:, None]
        return moved


def _values(arms: PairedArms) -> Array:
    return np.array([arms.value(name) for name in arms.names])


def _seed_of(combinations: Sequence[Weights]) -> int:
    """A seed made of names, so that it is nobody's choice."""
    import hashlib

    names = repr([sorted(each.items()) for each in combinations])
    return int.from_bytes(hashlib.sha256(names.encode()).digest()[:8], "big")


def _wider(alone: Combination, low: float, high: float) -> Combination:
    """The drawn interval, but never narrower than that over groups alone."""
    below = None if alone.low is None or not np.isfinite(low) else min(low, alone.low)
    above = None if alone.high is None or not np.isfinite(high) else max(high, alone.high)
    return Combination(alone.value, below, above)

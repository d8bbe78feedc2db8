"""Resampling of groups: the bootstrap and the sign-flip test behind every interval and p-value.

One metric of one arm (or one difference of two arms) is a `Table`: sums and counts by group and
task. A group (a passage) is drawn with all that it contributes to every task, so that examples
that share it are never taken for independent ones. NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

_CHUNK = 250  # resamples held at once: with 10,000 different groups they take 20 MB
_ROUNDING = 1e-12  # a smaller difference between two floating-point sums is rounding
_EXACT_GROUPS = 14  # 2^14 sign patterns are as quick as the 10,000 draws that replace them above


@dataclass(frozen=True, kw_only=True)
class Table:
    """`sums[g, t]` of a metric over the `counts[g, t]` examples of group g in task t.

    The table's value is Σ_t weights[t] · means[t], and `weights` sum to one. One example's metric
    lies between `floor` and `ceiling`, both infinite for a metric without bounds.
    """

    sums: Array
    counts: Array
    weights: Array
    floor: float
    ceiling: float

    @property
    def means(self) -> Array:
        """The mean over the examples of each task, shape (tasks,)."""
        means: Array = self.sums.sum(0) / self.counts.sum(0)
        return means

    @property
    def value(self) -> float:
        return float(self.means @ self.weights)

    @property
    def contributions(self) -> Array:
        """What each group adds to the value, shape (groups,); they sum to it."""
        contributions: Array = (self.sums / self.counts.sum(0)) @ self.weights
        return contributions


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, and the standard error over groups (0 where all groups agree)."""

    low: float
    high: float
    error: float


def bootstrap(table: Table, seed: int, resamples: int) -> Interval:
    """The 95 % percentile bootstrap interval of `table.value`, resampling groups.

    Groups are drawn within strata of equal "which tasks does this group occur in", so that every
    resample holds every task. With few groups the percentile interval is too narrow, by √((n−1)/n)
    and by the normal quantile where Student's is due (Hesterberg 2015, section 4.3); its arms are
    lengthened by both, with groups − strata degrees of freedom.

    A task whose groups all have the same mean (all right, all wrong, or no difference anywhere)
    has no spread to resample. For it the exact bound over groups is used: as many groups as go
    unseen with probability 2.5 % may differ in the worst way. For one task that is all right or
    all wrong this is the Clopper–Pearson interval over groups. Both parts are added in quadrature,
    as in MOVER (Zou and Donner 2008). A metric without bounds has no worst way, so its interval has
    no width there.

    The interval never leaves [floor, ceiling], and is all of it where no group has a like (a single
    group, say) that could show how far groups differ.
    """
    floors, ceilings = (np.full(table.weights.shape, bound) for bound in (table.floor, table.ceiling))
    draws = partial(draw, table.sums[None], table, seed, resamples)
    return interval(table, freedom(table), floors, ceilings, lambda: draws()[:, 0])


def freedom(table: Table) -> int:
    """Degrees of freedom: groups less strata."""
    return len(table.counts) - len(_strata(table.counts))


def interval(table: Table, freedom: int, floors: Array, ceilings: Array, draws: Callable[[], Array]) -> Interval:
    """`bootstrap`'s interval from given resamples of the table's value, `draws()` of shape (resamples,).

    `floors[t]` and `ceilings[t]` bound one example's metric in task t; the table's own are those of its value.
    """
    groups = len(table.counts)
    constant = (np.abs(table.sums - table.means * table.counts) < _ROUNDING).all(0)
    bounded = bool(np.isfinite([table.floor, table.ceiling]).all())
    if freedom == 0 and not (bounded and constant.all()):
        return Interval(table.floor, table.ceiling, float("inf"))
    down = _unseen(table, constant * (table.means - floors)) if bounded else 0.0
    up = _unseen(table, constant * (ceilings - table.means)) if bounded else 0.0
    if constant.all():
        return Interval(table.value - down, table.value + up, 0.0)

    drawn = draws()
    shrunk = np.sqrt(groups / freedom)
    widen = shrunk * _student_over_normal(freedom)
    low, high = np.quantile(drawn, [0.025, 0.975])
    down = np.hypot(down, widen * (table.value - low))
    up = np.hypot(up, widen * (high - table.value))
    return Interval(
        max(table.floor, float(table.value - down)),
        min(table.ceiling, float(table.value + up)),
        float(shrunk * drawn.std()),
    )


@cache
def _student_over_normal(freedom: int) -> float:
    """How much wider a 95 % interval is by Student's quantile than by the normal one."""
    return float(stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))


def draw(sums: Array, table: Table, seed: int, resamples: int) -> Array:
    """Values of several arms under the same resamples, shape (resamples, arms).

    `sums[a, g, t]` are the arms' sums over the examples that `table` counts; its own sums do not matter.
    """
    # Groups with equal rows are interchangeable: drawing how often each *kind* of row comes is the
    # same distribution, and for a 0/1 metric there are two kinds instead of thousands of groups.
    arms, _, tasks = sums.shape
    rows = np.hstack([*sums, table.counts])
    kinds = [np.unique(rows[stratum], axis=0, return_counts=True) for stratum in _strata(table.counts)]
    rng = np.random.default_rng(seed)
    values = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        totals: Array = sum(rng.multinomial(n.sum(), n / n.sum(), size) @ kind for kind, n in kinds)
        means = totals[:, :-tasks].reshape(size, arms, tasks) / totals[:, None, -tasks:]
        values.append(means @ table.weights)
    return np.concatenate(values)


def _strata(counts: Array) -> list[NDArray[np.intp]]:
    """The rows of groups that occur in the same tasks, one array per set of tasks."""
    _, stratum = np.unique(counts > 0, axis=0, return_inverse=True)
    return [np.flatnonzero(stratum == s) for s in range(stratum.max() + 1)]


def _unseen(table: Table, room: Array) -> float:
    """How far the value may be off although all groups of a task agree, `room[t]` per example.

    No group that differs was seen, so Π_g (1 − e_g) ≥ 0.025 for the probabilities e_g of differing.
    The largest Σ_t weights·room·e under this constraint is at most the returned bound (Jensen's
    inequality), with equality for one task and for equal tasks.
    """
    shares = table.weights * room
    total = float(shares.sum())
    if total == 0:
        return 0.0
    present = table.counts > 0
    heaviest = float((present @ (shares / present.sum(0))).max())
    return total * float(1 - 0.025 ** (heaviest / total))


def sign_flip(contributions: Array, seed: int, draws: int = 10_000) -> float:
    """Two-sided p-value of "each group's difference may as well have the other sign".

    The statistic is |Σ contributions|. Exact over all sign patterns for at most 14 groups with a
    difference; else Monte Carlo, (1 + hits) / (1 + draws), which never returns 0 (Phipson and Smyth
    2010).
    """
    sizes = np.abs(contributions)
    observed = abs(contributions.sum()) - _ROUNDING
    sizes = sizes[sizes > _ROUNDING]
    if len(sizes) <= _EXACT_GROUPS:
        patterns = 2 * (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1) - 1
        return float(np.mean(np.abs(patterns @ sizes) >= observed))
    # Groups of equal size are interchangeable: only the number of flipped ones matters.
    kinds, numbers = np.unique(sizes, return_counts=True)
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, draws, _CHUNK):
        flipped = rng.binomial(numbers, 0.5, (min(_CHUNK, draws - start), len(kinds)))
        hits += int(np.sum(np.abs((2 * flipped - numbers) @ kinds) >= observed))
    return (1 + hits) / (1 + draws)

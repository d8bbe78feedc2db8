"""Estimates of arms and comparisons between them, from outcomes alone.

The value of outcomes of one task is their mean. Of outcomes of several tasks it is the mean over
top-level names, so that a family (`choices/city`, `choices/age`, … are the family `choices`) counts
once, and within a family the unweighted mean over its tasks: `estimate(outcomes)` is the macro
score, `estimate(members(outcomes, "choices"))` the family's. Intervals and tests take groups, not
examples, as independent; a group of the same name in several tasks is one group.

The metrics of `latentwire.evaluation.metrics` are shares in [0, 1], and intervals use it. Any other
(`nll`, in nats) is taken to have no bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from latentwire.evaluation.group_intervals import Array, Table, interval
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.scores import Scores, seed
from latentwire.evaluation.significance import sign_flip

EQUAL = 0.05
"""Two arms are equal when the interval of their difference lies inside ±EQUAL."""


@dataclass(frozen=True)
class Estimate:
    """A metric, its 95 % interval, and how many examples and groups it rests on.

    The interval of a metric without bounds is infinite where only one group was seen, or where all groups agree.

    Example:
        >>> import latentwire as lw
        >>> results = lw.evaluate("embedded:heron", "one_hop", "text", limit=8)
        >>> results.estimate("text").n
        8
    """

    value: float
    low: float
    high: float
    n: int
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{_plain(self.low)}, {_plain(self.high)}] n={self.n}"


@dataclass(frozen=True)
class Comparison:
    """The difference a − b on the same examples: its 95 % interval, and a two-sided p-value.

    `resolvable` is the smallest true difference that a sample of this size and spread resolves with
    80 % probability. `p_holm` is the p-value corrected for the comparisons that were made beside this one,
    None where it stands alone.

    Example:
        >>> import latentwire as lw
        >>> results = lw.evaluate("embedded:heron", "one_hop", ["text", "none"], limit=40)
        >>> results.compare("text", "none").difference > 0.5
        True
    """

    difference: float
    low: float
    high: float
    p: float
    resolvable: float
    n: int
    groups: int
    p_holm: float | None = None

    @property
    def resolved(self) -> bool:
        """Whether the sample tells the arms apart: the interval excludes 0 and p < 0.05, corrected if it was."""
        return (self.low > 0 or self.high < 0) and max(self.p, self.p_holm or 0.0) < 0.05

    @property
    def equal(self) -> bool:
        """Whether the interval lies inside ±0.05: more than not being resolved."""
        return max(abs(self.low), abs(self.high)) < EQUAL

    def __str__(self) -> str:
        shown = f"{_plain(self.difference, '+')} [{_plain(self.low)}, {_plain(self.high)}]"
        p = self.p if self.p_holm is None else self.p_holm
        verdict = f"{'p<1e-4' if p < 1e-4 else f'p={p:.2g}'}, resolved" if self.resolved else "not resolved"
        return f"{shown}, {verdict} (this sample resolves ≥ {self.resolvable:.3f})"


def _plain(number: float, sign: str = "") -> str:
    """Three decimals, and never `-0.000`."""
    return f"{round(number, 3) + 0.0:{sign}.3f}"


def members(outcomes: Sequence[Outcome], task: str) -> list[Outcome]:
    """The outcomes of `task`: a task, a family of tasks (`choices`), or `macro` (all of them).

    Example:
        >>> estimate(members(outcomes, "choices"))
    """
    return [o for o in outcomes if task in ("macro", o.task) or o.task.startswith(f"{task}/")]


def shared(arms: Sequence[Sequence[Outcome]]) -> list[list[Outcome]]:
    """The outcomes of each arm on the examples that all arms have answered: a variant may have left some out.

    Example:
        >>> text, deranged = shared([by_arm(outcomes)["text"], by_arm(outcomes)["text:deranged"]])
    """
    answered = [{(o.task, o.id) for o in arm} for arm in arms]
    common = set.intersection(*answered) if answered else set()
    return [[o for o in arm if (o.task, o.id) in common] for arm in arms]


def estimate(outcomes: Sequence[Outcome], metric: str | None = None) -> Estimate:
    """The value of one arm's `outcomes` with its 95 % interval over groups.

    The interval is exact for a share of independent examples (Clopper–Pearson), and Korn and Graubard's (1998)
    where groups share a passage or scores lie between 0 and 1; see `latentwire.evaluation.group_intervals`.

    Args:
        metric: the primary one of each task if not named.

    Example:
        >>> str(estimate(evaluate(lm, tasks, [parse("text")]).outcomes))
        '0.402 [0.362, 0.442] n=600'

    Raises:
        ValueError: `outcomes` is empty, holds several arms or an example twice, or the metric is absent from an
            outcome, not finite, or a share outside [0, 1].
    """
    return estimate_scores(Scores.of(outcomes), metric)


def estimate_scores(scores: Scores, metric: str | None = None) -> Estimate:
    """`estimate` of outcomes that are columns already."""
    floor, ceiling = (0.0, 1.0) if scores.bounded(metric) else (-np.inf, np.inf)
    table = scores.table(scores.values(metric), floor, ceiling)
    found = interval(table)
    return Estimate(table.value, found.low, found.high, len(scores), len(table.counts))


def compare(a: Sequence[Outcome], b: Sequence[Outcome], metric: str | None = None) -> Comparison:
    """The paired difference a − b of two arms on the same examples.

    The interval is that of `latentwire.evaluation.group_intervals`: wins and losses each have Korn and
    Graubard's, and MOVER subtracts them. The p-value is McNemar's exact one (a binomial test of the pairs that
    disagree) for a 0/1 metric of one task with one example per group, else that of a sign-flip test over groups,
    weighted as the value is.

    `resolvable` is (t_0.975 + t_0.8)·SE, 2.80·SE for many groups (Student's t with groups − 1 degrees
    of freedom). For a share, SE is that of a sample in which the arms do differ so much: to the
    observed variance over groups comes what a true difference δ adds by turning a share δ of the n
    answers, δ(1 − δ)/n. Simulated power at the figure is 82 % to 84 % for 60 to 500 groups, 75 % for
    30 and 60 % for 10 (without that term 46 % to 74 %): few groups tell less than it says. Where all
    groups agree, n is the number of groups, and about 7.8 / (groups + 7.8) results: a rule of three
    for tests. Below six groups nothing is resolvable, for no two-sided sign test on five can reach
    0.05 (2·0.5^5 > 0.05), and the figure is the largest possible difference.

    Example:
        >>> compare(*shared([by_arm(outcomes)["text"], by_arm(outcomes)["none"]])).resolved
        True

    Raises:
        ValueError: as `estimate` for each of the arms, or their examples or groups differ.
    """
    first, second = Scores.of(a), Scores.of(b)
    values_a, values_b = first.values(metric), second.values(metric)[second.in_order_of(first)]
    differences = values_a - values_b
    largest = 1.0 if first.bounded(metric) else np.inf
    table = first.table(differences, -largest, largest)
    bounds = interval(table)

    better, worse = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    binary = bool(np.isin(values_a, (0.0, 1.0)).all() and np.isin(values_b, (0.0, 1.0)).all())
    if binary and table.counts.shape[1] == 1 and (table.counts == 1).all():
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    else:
        p = sign_flip(table.contributions, seed([first, second], metric))
    return Comparison(
        difference=table.value + 0.0,  # + 0.0, for a tie may be -0.0
        low=bounds.low,
        high=bounds.high,
        p=p,
        resolvable=_resolvable(table, bounds.error),
        n=len(first),
        groups=len(table.counts),
    )


def aligned(arms: Sequence[Sequence[Outcome]]) -> tuple[Array, Table]:
    """Arms on the same examples, by their primary metrics: sums `(arms, groups, tasks)`, and the table of the
    first.

    Raises:
        ValueError: as `compare`, or a primary metric is not a share in [0, 1].
    """
    columns = [Scores.of(arm) for arm in arms]
    tables = []
    for scores, outcomes in zip(columns, arms, strict=True):
        values = scores.values(None)
        if not scores.bounded(None):
            raise ValueError(f"expected a share in [0, 1] as the primary metric, found {outcomes[0].metrics}")
        try:
            scores.in_order_of(columns[0])
        except ValueError as error:
            raise ValueError(f"the arms differ in their examples or groups: {error}") from error
        tables.append(scores.table(values, 0.0, 1.0))
    return np.stack([table.sums for table in tables]), tables[0]


def _resolvable(table: Table, error: float) -> float:
    """The positive root of δ² = t²·(error² + δ(1 − δ)/n), for a share: see `compare`."""
    groups = len(table.counts)
    if groups < 6 or not np.isfinite(error):
        return table.ceiling
    t2 = float(stats.t.ppf([0.975, 0.8], groups - 1).sum()) ** 2
    if not np.isfinite(table.ceiling):
        return float(np.sqrt(t2) * error) if error else table.ceiling
    n = 1 / float(np.sum(table.weights**2 / table.counts.sum(0))) if error else groups
    root = t2 / n + np.sqrt((t2 / n) ** 2 + 4 * (1 + t2 / n) * t2 * error**2)
    return min(table.ceiling, float(root / (2 * (1 + t2 / n))))

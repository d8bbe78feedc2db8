"""Every arm beside the baseline, on the examples that both have answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import Comparison, compare, members, shared
from latentwire.evaluation.summarize import by_arm, rows

BASELINE = "text"


@dataclass(frozen=True)
class Paired:
    """An arm minus the baseline on one task, family or `macro`, by the primary metric."""

    task: str
    metric: str
    a: str
    b: str
    found: Comparison

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it: what a study's comparisons hold, and `p_holm` and `resolvable`."""
        return {
            "task": self.task,
            "metric": self.metric,
            "a": self.a,
            "b": self.b,
            **asdict(self.found),
            "resolved": self.found.resolved,
        }


def baseline_of(arms: Sequence[str]) -> str:
    """`text` where it is among the arms, else the first arm."""
    return BASELINE if BASELINE in arms else arms[0]


def against_baseline(outcomes: Sequence[Outcome]) -> list[Paired]:
    """Every other arm minus the baseline on every task, family and `macro`, p-values Holm-corrected over all of
    them.

    An arm that shares no example with the baseline on a task is not compared there.

    Example:
        >>> [str(each.found) for each in against_baseline(outcomes)]
        ['-0.320 [-0.362, -0.278], p<1e-4, resolved (this sample resolves ≥ 0.061)']
    """
    arms = by_arm(outcomes)
    baseline = baseline_of(list(arms))
    pairs: list[Paired] = []
    for task in rows(outcome.task for outcome in outcomes):
        base = members(arms[baseline], task)
        for arm, own in arms.items():
            a, b = shared([members(own, task), base])
            if arm != baseline and a:
                pairs.append(Paired(task, metric_of(base), arm, baseline, compare(a, b)))
    corrected = holm([pair.found.p for pair in pairs])
    return [replace(pair, found=replace(pair.found, p_holm=p)) for pair, p in zip(pairs, corrected, strict=True)]


def metric_of(outcomes: Sequence[Outcome]) -> str:
    """The primary metric, or `primary` where the tasks' primary metrics differ."""
    names = {next(iter(outcome.metrics)) for outcome in outcomes}
    return names.pop() if len(names) == 1 else "primary"

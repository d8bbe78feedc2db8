"""Outcomes as the numbers of `summary.json` and of `--json`: per arm, task and metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypedDict

from latentwire.evaluation.matching import normalize
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.scores import Scores
from latentwire.evaluation.statistics import Estimate, estimate, estimate_scores


class Number(TypedDict):
    """A metric with its 95 % interval, None where the sample cannot bound it, and its number of examples."""

    value: float
    low: float | None
    high: float | None
    n: int


Metrics = dict[str, dict[str, dict[str, Number]]]
"""`{ARM: {TASK: {METRIC: Number}}}`."""


def rows(tasks: Iterable[str]) -> list[str]:
    """Task names in order, each family after its members, `macro` last if there is more than one task.

    Example:
        >>> rows(["one_hop", "choices/city", "choices/age"])
        ['one_hop', 'choices/city', 'choices/age', 'choices', 'macro']
    """
    shown: list[str] = []
    names = list(dict.fromkeys(tasks))
    for at, name in enumerate(names):
        shown.append(name)
        family = name.split("/")[0]
        if family != name and not any(later.startswith(f"{family}/") for later in names[at + 1 :]):
            shown.append(family)
    tops = {name.split("/")[0] for name in names}
    return [*shown, "macro"] if len(tops) > 1 else shown


def by_arm(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by arm, arms in order of appearance."""
    arms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(outcome.arm, []).append(outcome)
    return arms


def summarize(outcomes: Sequence[Outcome]) -> Metrics:
    """Every metric of every arm and task, families and `macro` included.

    `macro` mixes tasks of different kinds and therefore has one metric only, `primary`: the mean of the
    tasks' primary metrics. A family has the metrics that its members share.
    """
    summary: Metrics = {}
    for arm, own in by_arm(outcomes).items():
        scores = Scores.of(own)
        summary[arm] = {}
        for task in rows(outcome.task for outcome in own):
            part = scores.of_task(task)
            if task == "macro":
                summary[arm][task] = {"primary": _number(estimate_scores(part))}
            else:
                summary[arm][task] = {name: _number(estimate_scores(part, name)) for name in part.common}
    return summary


def invalid(outcomes: Sequence[Outcome]) -> Number:
    """The share of one arm's answers to one task that could not be read, whatever the right one was."""
    unreadable = [replace(o, metrics={"unreadable": float(o.error == "unreadable")}) for o in outcomes]
    return _number(estimate(unreadable))


def agreement(arms: Sequence[Sequence[Outcome]]) -> Number | None:
    """The share of examples of one task that all arms answer alike, right or wrong, as SQuAD compares texts.

    Examples that one of the arms was not asked do not count; None if no others are left.
    """
    said = [{outcome.id: normalize(outcome.prediction) for outcome in arm} for arm in arms]
    shared = [outcome for outcome in arms[0] if all(outcome.id in answers for answers in said)]
    if not shared:
        return None
    alike = [
        replace(each, metrics={"agreement": float(len({answers[each.id] for answers in said}) == 1)})
        for each in shared
    ]
    return _number(estimate(alike))


def _number(found: Estimate) -> Number:
    low, high = (bound if math.isfinite(bound) else None for bound in (found.low, found.high))
    return {"value": found.value, "low": low, "high": high, "n": found.n}

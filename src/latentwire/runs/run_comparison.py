"""Paired comparisons between finished runs, from their outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.evaluation import lm_eval_samples
from latentwire.evaluation.baseline import metric_of
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.pooled import PooledComparison, compare_pooled, shared_by_seed
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import members
from latentwire.evaluation.summarize import rows
from latentwire.runs.sides import Side, read_side


@dataclass(frozen=True)
class RunComparison:
    """The difference a − b of one arm of one side and one arm of another, on one task.

    Attributes:
        a, b: the sides as they were written, each with its arm where it has several.
        task: a task, a family or `macro`.
        metric: the metric compared; `primary` for the mean of several tasks' primary metrics.
        result: the comparison, Holm-corrected over all that were made with it.
        single_seed: whether a trained arm has only one seed.
    """

    a: str
    b: str
    task: str
    metric: str
    result: PooledComparison
    single_seed: bool

    def numbers(self) -> dict[str, Any]:
        """Everything as JSON."""
        rest = {key: value for key, value in vars(self).items() if key != "result"}
        return {**rest, **vars(self.result), "resolved": self.result.resolved}


def compare_runs(
    root: Path,
    sides: Sequence[str],
    *,
    arm: str | None = None,
    task: str | None = None,
    metric: str | None = None,
) -> list[RunComparison]:
    """Compare the first side with each of the others, on the same examples.

    Args:
        root: the folder of all runs.
        sides: two or more, as `runs.sides` reads them.
        arm: compare this arm of every side that has several.
        task: one task, family or `macro` only; the top-level ones if not given.
        metric: the primary one if not given.

    Returns:
        One comparison for each arm that two sides share and each task; p-values are corrected over all of them.

    Raises:
        UserError: a side cannot be read, the sides' examples differ, or they share no arm.
    """
    if len(sides) < 2:
        raise UserError(
            f"compare: found {len(sides)} run, expected two or more: the first is compared with the others."
        )
    read = [read_side(root, text) for text in sides]
    if arm is not None:
        read = [each if each.samples or len(each.arms) == 1 else each.only(arm) for each in read]
    comparisons = [one for other in read[1:] for one in _two(*_as_outcomes(read[0], other), task, metric)]
    corrected = holm([each.result.p for each in comparisons])
    if len(comparisons) == 1:
        return comparisons
    return [
        replace(each, result=replace(each.result, p_holm=p))
        for each, p in zip(comparisons, corrected, strict=True)
    ]


def differing_examples(a: Side, b: Side) -> str | None:
    """What differs between the examples of two sides, as the end of a sentence; None where they are the same."""
    for task in a.examples.keys() & b.examples.keys():
        mine, theirs = a.examples[task], b.examples[task]
        if mine != theirs:
            told = [_lacking(mine - theirs, a.label), _lacking(theirs - mine, b.label)]
            return f"{task}: {' and '.join(filter(None, told))} ({len(mine & theirs):,} are in both)"
    for task in a.contents.keys() & b.contents.keys():
        if a.contents[task] != b.contents[task]:
            return f"{task}: the examples have the same ids and other contents or another order"
    return None


def _lacking(ids: set[str], label: str) -> str:
    return f"{len(ids):,} examples are in {label} only, {min(ids)} among them" if ids else ""


def _as_outcomes(a: Side, b: Side) -> tuple[Side, Side]:
    """Two sides as outcomes with the same ids, where one or both are logs of lm-eval."""
    if a.samples and b.samples:
        return _alone(a), _alone(b)
    if a.samples:
        return _like(a, b), b
    return (a, _like(b, a)) if b.samples else (a, b)


def _alone(side: Side) -> Side:
    outcomes = lm_eval_samples.alone(side.samples)
    return replace(side, arms={lm_eval_samples.ARM: {"": outcomes}}, examples=_ids(outcomes))


def _like(log: Side, run: Side) -> Side:
    """A log's outcomes, with the ids and groups of a run's."""
    first = next(iter(next(iter(run.arms.values())).values()))
    by_task = {name: [o for o in first if o.task == name] for name in dict.fromkeys(o.task for o in first)}
    outcomes = lm_eval_samples.outcomes(log.samples, by_task)
    return replace(log, arms={lm_eval_samples.ARM: {"": outcomes}}, examples=_ids(outcomes))


def _ids(outcomes: Sequence[Outcome]) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {}
    for outcome in outcomes:
        ids.setdefault(outcome.task, set()).add(outcome.id)
    return ids


def _two(a: Side, b: Side, task: str | None, metric: str | None) -> list[RunComparison]:
    if (differs := differing_examples(a, b)) is not None:
        raise UserError(
            f"compare: found other examples in {b.label} than in {a.label}: {differs}; expected the same."
        )
    tasks = a.examples.keys() & b.examples.keys()
    if not tasks:
        found = f"{', '.join(a.examples)} in {a.label} and {', '.join(b.examples)} in {b.label}"
        raise UserError(f"compare: found {found}, expected a task that both have.")
    comparisons = []
    for one, other in _pairs(a, b):
        mine, theirs = (
            {seed: [o for o in outcomes if o.task in tasks] for seed, outcomes in side.arms[name].items()}
            for side, name in ((a, one), (b, other))
        )
        shown = rows(o.task for o in next(iter(mine.values())))
        wanted = [task] if task is not None else [name for name in shown if "/" not in name]
        for name in wanted:
            if name not in shown:
                raise UserError(f"compare: found task {name!r}, expected one of {', '.join(shown)}.")
            comparisons.append(_one(a, b, one, other, name, metric, (mine, theirs)))
    return comparisons


def _one(
    a: Side,
    b: Side,
    one: str,
    other: str,
    task: str,
    metric: str | None,
    arms: tuple[Mapping[str, list[Outcome]], Mapping[str, list[Outcome]]],
) -> RunComparison:
    parts = [{seed: members(outcomes, task) for seed, outcomes in arm.items()} for arm in arms]
    mine, theirs = shared_by_seed(parts)
    sample = next(iter(mine.values()))
    common = (
        [name for name in sample[0].metrics if name in next(iter(theirs.values()))[0].metrics] if sample else []
    )
    if not sample or not common:
        raise UserError(
            f"compare: {task}: found no example that {a.label} and {b.label} both score, expected some."
        )
    named = metric or (None if len({next(iter(o.metrics)) for o in sample}) > 1 else common[0])
    try:
        result = compare_pooled(mine, theirs, named)
    except ValueError as error:
        raise UserError(f"compare: {task}: {error}.") from error
    return RunComparison(
        a=_named(a, one),
        b=_named(b, other),
        task=task,
        metric=named or metric_of(sample),
        result=result,
        single_seed=(a.trained and len(mine) == 1) or (b.trained and len(theirs) == 1),
    )


def _named(side: Side, arm: str) -> str:
    return side.label if len(side.arms) == 1 else f"{side.label}:{arm}"


def _pairs(a: Side, b: Side) -> list[tuple[str, str]]:
    """The arms that are compared: the only one of each side, else those of the same name."""
    if len(a.arms) == len(b.arms) == 1:
        return [(next(iter(a.arms)), next(iter(b.arms)))]
    same = [(name, name) for name in a.arms if name in b.arms]
    if same:
        return same
    for one, other, swap in ((a, b, False), (b, a, True)):
        if len(one.arms) == 1 and "text" in other.arms:
            pair = (next(iter(one.arms)), "text")
            return [(pair[1], pair[0])] if swap else [pair]
    raise UserError(
        f"compare: found the arms {', '.join(a.arms)} in {a.label} and {', '.join(b.arms)} in {b.label}, expected "
        "one that both have; name them: RUN:ARM."
    )

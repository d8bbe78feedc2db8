"""The table of arms: every reading's primary metric by task with its interval, and the floors below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire.report.gathered import Gathered
from latentwire.report.wording import counted

FLOORS = ("chance", "type_floor")


@dataclass(frozen=True)
class ScoreRow:
    """A reading, or a floor, with a number (or None) for each task."""

    stage: str
    arm: str
    wire: str
    leaks: bool
    numbers: list[Mapping[str, Any] | None]


@dataclass(frozen=True)
class ScoreTable:
    """Readings against tasks.

    Attributes:
        tasks: Top-level tasks and `macro`; members of families are in `members`.
        rows: Readings in the study's order.
        floors: Rows of floors that are numbers.
        members: The same table for the members of families; None without families.
        note: How many examples, and which metric.
    """

    tasks: list[str]
    rows: list[ScoreRow]
    floors: list[ScoreRow]
    members: ScoreTable | None
    note: str


def score_table(study: Gathered) -> ScoreTable | None:
    """The table of a study; None if nothing has been evaluated."""
    tasks = list(
        dict.fromkeys(
            task
            for stage in study.summary["stages"].values()
            for metrics in stage["metrics"].values()
            for task in metrics
        )
    )
    if not tasks:
        return None
    top = [task for task in tasks if "/" not in task]
    within = [task for task in tasks if "/" in task]
    members = _table(study, within, None) if within else None
    return _table(study, top, members)


def _table(study: Gathered, tasks: Sequence[str], members: ScoreTable | None) -> ScoreTable:
    rows, counts, metrics = [], set(), set()
    for stage, found in study.summary["stages"].items():
        arms = study.outline.get("stages", {}).get(stage, {}).get("arms", {})
        leaks = study.evaluations().get(stage, {}).get("leaks", ())
        for arm, by_task in found["metrics"].items():
            numbers = [_primary(by_task.get(task)) for task in tasks]
            counts |= {each["n"] for each, task in zip(numbers, tasks, strict=True) if each and task != "macro"}
            metrics |= {next(iter(by_task[task])) for task in tasks if by_task.get(task)}
            rows.append(ScoreRow(stage, arm, arms.get(arm, ""), arm in leaks, numbers))
    sizes = f"{min(counts):,} to {max(counts):,} examples" if len(counts) > 1 else counted(max(counts), "example")
    named = f" ({', '.join(sorted(metrics - {'primary'}))})" if metrics - {"primary"} else ""
    note = f"Primary metric{named} with its 95 % interval; {sizes} for each task, the same ones in every stage."
    return ScoreTable(list(tasks), rows, list(floor_rows(study, tasks)), members, note)


def _primary(metrics: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return next(iter(metrics.values())) if metrics else None


def floor_rows(study: Gathered, tasks: Sequence[str]) -> list[ScoreRow]:
    """A row for each kind of floor that is a number; of a family its tasks' mean, of `macro` the families'."""
    known = study.floors()
    families: dict[str, list[str]] = {}
    for task in known:
        families.setdefault(task.split("/")[0], []).append(task)
    rows = []
    for kind in FLOORS:
        of = {task: each.get(kind) for task, each in known.items()}
        of |= {family: _mean([of[task] for task in members]) for family, members in families.items()}
        of["macro"] = _mean([of[family] for family in families])
        values = [of.get(task) for task in tasks]
        if any(value is not None for value in values):
            numbers: list[Mapping[str, Any] | None] = [
                None if value is None else {"value": value, "low": None, "high": None} for value in values
            ]
            rows.append(ScoreRow("", kind, "", False, numbers))
    return rows


def highest_floor(study: Gathered, task: str) -> tuple[float, str]:
    """The highest floor of a task that is known: a number, or a reading of the question alone."""
    found = [
        (float(number["value"]), row.arm)
        for row in floor_rows(study, [task])
        for number in row.numbers
        if number is not None
    ]
    found += [
        (float(number["value"]), reading.name)
        for reading in study.readings.values()
        if reading.blind
        and (number := _primary(study.summary["stages"][reading.stage]["metrics"][reading.arm].get(task)))
    ]
    return max(found, default=(0.0, "no floor is known"))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None

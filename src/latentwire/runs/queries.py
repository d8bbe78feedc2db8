"""Finding runs: by study, stage, status, date, and by what they scored. The run files are the only database."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from latentwire.errors import UserError, one_of
from latentwire.runs.store import Run, Status, Unreadable, scan

_WRITTEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(>=|<=|==|!=|=|>|<)\s*(\S+)\s*")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
_AGO = re.compile(r"(\d+)\s*(h|d|w)")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class MetricCondition:
    """A bound on a metric, written `exact_match>0.5`, of any arm and task or of those named.

    Attributes:
        metric: a metric of an evaluation, or a number among a training's results such as `best_loss`.
        sign: one of >=, <=, >, <, ==, !=.
        bound: in the metric's unit.
        arm, task: patterns.
    """

    metric: str
    sign: str
    bound: float
    arm: str = "*"
    task: str = "*"

    @classmethod
    def parse(cls, text: str, arm: str = "*", task: str = "*") -> MetricCondition:
        """A condition from its text.

        Raises:
            UserError: it is written otherwise.
        """
        written = _WRITTEN.fullmatch(text)
        try:
            bound = float(written[3]) if written else None
        except ValueError:
            bound = None
        if written is None or bound is None:
            raise UserError(f"--metric: found {text!r}, expected METRIC and a bound, such as exact_match>0.5.")
        return cls(written[1], written[2], bound, arm, task)

    def met_by(self, run: Run) -> list[str]:
        """What meets it, as `ARM TASK METRIC 0.512`; empty if nothing does."""
        holds = _SIGNS[self.sign]
        met = [
            f"{arm} {task} {self.metric} {value:.3f}"
            for arm, tasks in _metrics(run).items()
            if fnmatchcase(arm, self.arm)
            for task, numbers in tasks.items()
            if fnmatchcase(task, self.task)
            for name, number in numbers.items()
            if name == self.metric and holds(value := number["value"], self.bound)
        ]
        value = (run.record.results or {}).get(self.metric)
        if isinstance(value, int | float) and not isinstance(value, bool) and holds(value, self.bound):
            met.append(f"{self.metric} {value:.4g}")
        return met


@dataclass(frozen=True)
class Query:
    """Which runs are wanted; everything that is given must hold.

    Attributes:
        study, stage, kind: patterns, such as `fit-*`.
        statuses: any of these; all if empty.
        since, until: when the run began, `until` not included.
        metrics: bounds on what it scored.
    """

    study: str = "*"
    stage: str = "*"
    kind: str = "*"
    statuses: tuple[Status, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    metrics: tuple[MetricCondition, ...] = ()


@dataclass(frozen=True)
class Hit:
    """A run that a query found, and the numbers that meet its bounds."""

    run: Run
    met: tuple[str, ...] = ()


def query(
    *,
    study: str | None = None,
    stage: str | None = None,
    kind: str | None = None,
    status: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    metric: Sequence[str] = (),
    arm: str | None = None,
    task: str | None = None,
    now: datetime | None = None,
) -> Query:
    """A query from the words of a command line.

    Args:
        study, stage, kind: names or patterns.
        status: names of statuses.
        since, until: a date or time (`2026-11-29`, `2026-11-29T18:00`, UTC), or how long ago (`6h`, `3d`, `2w`);
            the day that `until` names is included.
        metric: bounds such as `exact_match>0.5`.
        arm, task: which arm's and task's metrics count.
        now: what `3d` counts back from.

    Raises:
        UserError: a status, a date or a bound is written otherwise.
    """
    known = get_args(Status)
    for each in status:
        if each not in known:
            raise UserError(f"--status: found {each!r}, expected {one_of(each, known)}.")
    if (arm or task) and not metric:
        raise UserError(
            f"--{'arm' if arm else 'task'}: found it without --metric, expected a bound such as acc>0.5."
        )
    return Query(
        study=study or "*",
        stage=stage or "*",
        kind=kind or "*",
        statuses=tuple(status),  # type: ignore[arg-type]
        since=_moment(since, "--since", now),
        until=_moment(until, "--until", now, end=True),
        metrics=tuple(MetricCondition.parse(text, arm or "*", task or "*") for text in metric),
    )


def search(root: Path, wanted: Query) -> tuple[list[Hit], list[Unreadable]]:
    """The runs that a query finds, oldest first, and those in its folders that cannot be read."""
    readable, unreadable = scan(root, wanted.study, wanted.stage)
    return list(_hits(readable, wanted)), unreadable


def began(run: Run) -> datetime:
    """When a run began: its first attempt, or the time in its folder's name."""
    if run.record.times:
        return datetime.fromisoformat(run.record.times[0].started)
    try:
        return datetime.strptime(run.folder.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(run.folder.stat().st_mtime, UTC)


def _hits(runs: Sequence[Run], wanted: Query) -> Iterator[Hit]:
    for run in runs:
        if not fnmatchcase(run.record.kind, wanted.kind):
            continue
        if wanted.since is not None and began(run) < wanted.since:
            continue
        if wanted.until is not None and began(run) >= wanted.until:
            continue
        if wanted.statuses and run.status not in wanted.statuses:
            continue
        met = [condition.met_by(run) for condition in wanted.metrics]
        if all(met):
            yield Hit(run, tuple(text for each in met for text in each))


def _metrics(run: Run) -> Mapping[str, Any]:
    """A finished run's metrics; none where they cannot be read, which `runs verify` reports."""
    try:
        return run.metrics()
    except (OSError, ValueError):
        return {}


def _moment(text: str | None, option: str, now: datetime | None, *, end: bool = False) -> datetime | None:
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return (now or datetime.now(UTC)) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        day = date.fromisoformat(text)
        return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=int(end))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(
            f"{option}: found {text!r}, expected a date such as 2026-11-29, or 6h, 3d or 2w ago."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def as_json(hits: Sequence[Hit]) -> str:
    """Hits as JSON Lines: run, folder, kind, status, began, seconds, and what met the bounds."""
    lines = [
        {
            "run": hit.run.record.run,
            "folder": str(hit.run.folder),
            "kind": hit.run.record.kind,
            "status": hit.run.status,
            "began": began(hit.run).isoformat(timespec="seconds"),
            "seconds": hit.run.seconds,
            "met": list(hit.met),
        }
        for hit in hits
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

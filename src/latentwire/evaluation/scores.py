"""Outcomes of one arm as columns of numbers, which all statistics are computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from latentwire.evaluation.group_intervals import Array, Table
from latentwire.evaluation.metrics import ALSO_SHARES, METRICS
from latentwire.evaluation.outcomes import Outcome

_SHARES = {name for names in METRICS.values() for name in names} | set(ALSO_SHARES)


@dataclass(frozen=True)
class Scores:
    """One arm's scores, one row per example.

    Attributes:
        arm: its label.
        tasks: names in alphabetical order; `task` is each row's index into them, shape (rows,).
        groups: names in alphabetical order; `group` is each row's index into them, shape (rows,).
        keys: (task, id) of each row.
        metrics: by name each row's score, NaN where the outcome has no such metric, shape (rows,).
        names: by task the metrics of its first outcome, in order; the first is the primary one.
    """

    arm: str
    tasks: tuple[str, ...]
    task: NDArray[np.intp]
    groups: tuple[str, ...]
    group: NDArray[np.intp]
    keys: list[tuple[str, str]]
    metrics: dict[str, Array]
    names: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Self:
        """The scores of one arm's outcomes.

        Raises:
            ValueError: there are none, or of several arms, or an example comes twice.
        """
        arms = sorted({o.arm for o in outcomes})
        if len(arms) != 1:
            raise ValueError(f"expected outcomes of one arm, found {', '.join(arms) or 'none'}")
        keys = [(o.task, o.id) for o in outcomes]
        if len(set(keys)) < len(keys):
            seen: set[tuple[str, str]] = set()
            task, example = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"{task} {example}: expected each example once, found it twice")
        tasks, task_of = _indexed([o.task for o in outcomes])
        groups, group_of = _indexed([o.group for o in outcomes])
        names: dict[str, tuple[str, ...]] = {}
        for outcome in outcomes:
            if outcome.task not in names:
                names[outcome.task] = tuple(outcome.metrics)
        nan = float("nan")
        metrics = {
            name: np.array([o.metrics.get(name, nan) for o in outcomes], dtype=float)
            for name in dict.fromkeys(name for own in names.values() for name in own)
        }
        return cls(arms[0], tasks, task_of, groups, group_of, keys, metrics, names)

    def __len__(self) -> int:
        return len(self.keys)

    def of_task(self, task: str) -> Self:
        """The rows of `task`: a task, a family of tasks (`choices`), or `macro` (all of them)."""
        wanted = [task in ("macro", name) or name.startswith(f"{task}/") for name in self.tasks]
        if all(wanted):
            return self
        return self._rows(np.flatnonzero(np.array(wanted)[self.task]))

    def _rows(self, rows: NDArray[np.intp]) -> Self:
        tasks, task_of = _reindexed(self.tasks, self.task[rows])
        groups, group_of = _reindexed(self.groups, self.group[rows])
        keys = [self.keys[row] for row in rows]
        metrics = {name: values[rows] for name, values in self.metrics.items()}
        names = {name: self.names[name] for name in tasks}
        return type(self)(self.arm, tasks, task_of, groups, group_of, keys, metrics, names)

    @property
    def common(self) -> list[str]:
        """The metrics that every row has, in the order of the first row's task."""
        first = self.names[self.keys[0][0]]
        return [name for name in first if not np.isnan(self.metrics[name]).any()]

    def metric(self, task: str, metric: str | None) -> str:
        """`metric`, or the primary one of a task; empty where it has none."""
        return metric or next(iter(self.names[task]), "")

    def bounded(self, metric: str | None) -> bool:
        """Whether a metric (the primary one of each task if not named) is a share in [0, 1]."""
        return all(self.metric(task, metric) in _SHARES for task in self.tasks)

    def values(self, metric: str | None) -> Array:
        """Each row's score by a metric, or by the primary one of its task, shape (rows,).

        Raises:
            ValueError: it is absent from a row, not finite, or a share outside [0, 1].
        """
        nan = np.full(len(self), np.nan)
        values = nan.copy()
        for at, task in enumerate(self.tasks):
            mine = self.task == at
            values[mine] = self.metrics.get(self.metric(task, metric), nan)[mine]
        shares = np.array([self.metric(task, metric) in _SHARES for task in self.tasks])[self.task]
        with np.errstate(invalid="ignore"):
            wrong = ~np.isfinite(values) | (shares & ~((values >= 0) & (values <= 1)))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            name = self.metric(self.keys[row][0], metric)
            expected = f"{name or 'a metric'}{' in [0, 1]' if shares[row] else ''}"
            found = {metric: float(column[row]) for metric, column in self.metrics.items()}
            raise ValueError(f"{' '.join(self.keys[row])}: expected {expected}, found {found}")
        return values

    def table(self, values: Array, floor: float, ceiling: float) -> Table:
        """A value per row, summed by group and task, with the weights of the mean over tasks."""
        shape = len(self.groups), len(self.tasks)
        cell = self.group * shape[1] + self.task
        sums = np.bincount(cell, values, shape[0] * shape[1]).reshape(shape).astype(float)
        counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
        families = [task.split("/")[0] for task in self.tasks]
        weights = np.array([1 / (len(set(families)) * families.count(family)) for family in families])
        bounds = np.full(shape[1], floor), np.full(shape[1], ceiling)
        return Table(sums=sums, counts=counts, weights=weights, floors=bounds[0], ceilings=bounds[1])

    def in_order_of(self, other: Scores) -> NDArray[np.intp]:
        """The row of each of the other's examples, shape (rows,).

        Raises:
            ValueError: the arms differ in their examples or groups.
        """
        if self.keys == other.keys:
            order = np.arange(len(self))
        else:
            place = {key: row for row, key in enumerate(self.keys)}
            unpaired = sorted(place.keys() ^ set(other.keys))
            if unpaired:
                raise ValueError(f"{len(unpaired)} examples are in one arm only, {unpaired[0]} among them")
            order = np.array([place[key] for key in other.keys])
        if self.groups != other.groups or (self.group[order] != other.group).any():
            mine = [self.groups[group] for group in self.group[order]]
            theirs = [other.groups[group] for group in other.group]
            example = next(key for key, a, b in zip(other.keys, mine, theirs, strict=True) if a != b)
            raise ValueError(f"the arms put the example {example} into different groups")
        return order


def seed(arms: Iterable[Scores], metric: str | None) -> int:
    """A seed made from names, so that it is nobody's choice; the primary metric may be named or not."""
    arms = list(arms)
    measured = {arm.metric(task, metric) for arm in arms for task in arm.tasks}
    metric = measured.pop() if len(measured) == 1 else metric
    names = {("task", task) for arm in arms for task in arm.tasks} | {("arm", arm.arm) for arm in arms}
    return int.from_bytes(hashlib.sha256(repr((sorted(names), metric)).encode()).digest()[:8], "big")


def _indexed(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """Different names in alphabetical order, and the index of each."""
    different = tuple(sorted(set(names)))
    place = {name: at for at, name in enumerate(different)}
    return different, np.array([place[name] for name in names])


def _reindexed(names: Sequence[str], index: NDArray[np.intp]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    used, again = np.unique(index, return_inverse=True)
    return tuple(names[at] for at in used), again

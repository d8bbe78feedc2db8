"""`evaluate`: arms times tasks, with outcomes and statistics as objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from latentwire.api.spelling import ModelLike, TaskLike, WireLike, as_arms, as_model, as_tasks
from latentwire.errors import UserError, one_of
from latentwire.evaluation import score_tables, statistics, wire_tables
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.evaluate import Evaluation, Progress
from latentwire.evaluation.gaps import Gap, gaps
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.several_readers import evaluate_readers, readers_of
from latentwire.evaluation.statistics import Comparison, Estimate
from latentwire.evaluation.summarize import Metrics, by_arm, rows, summarize
from latentwire.lm.model import LM
from latentwire.printing import text_of
from latentwire.tasks.base import Split

if TYPE_CHECKING:
    from pandas import DataFrame

DEFAULT_WIRES = ("text", "text,mask=prefix", "none")


@dataclass(frozen=True, eq=False)
class Results:
    """What arms answered on tasks; printing it shows the table of the command `eval`.

    Attributes:
        evaluation: outcomes and floors as the engine returned them.
        leaking: labels of arms under which a scored token sees its own label.
        question_aware: labels of arms whose message was encoded with the question in sight.

    Example:
        >>> import latentwire as lw
        >>> results = lw.evaluate("embedded:heron", ["one_hop", "reverse"], "text", limit=4)
        >>> results.tasks
        ['one_hop', 'reverse', 'macro']
    """

    evaluation: Evaluation
    leaking: tuple[str, ...] = ()
    question_aware: tuple[str, ...] = ()

    @property
    def outcomes(self) -> list[Outcome]:
        """One outcome for each task, arm and example, in that order."""
        return self.evaluation.outcomes

    @property
    def arms(self) -> list[str]:
        """The labels of the arms, in the order in which they were named."""
        return list(by_arm(self.outcomes))

    @property
    def tasks(self) -> list[str]:
        """Names of tasks, families of tasks, and `macro` where there are several."""
        return rows(outcome.task for outcome in self.outcomes)

    def estimate(self, arm: str, task: str | None = None, metric: str | None = None) -> Estimate:
        """An arm's score with its 95 % interval over groups, and how many examples it rests on.

        Args:
            arm: a label, one of `arms`.
            task: one of `tasks`; None takes the last, which is `macro` where there are several.
            metric: a metric's name; None takes each task's primary metric.

        Raises:
            UserError: no such arm, task or metric.

        Example:
            >>> import latentwire as lw
            >>> results = lw.evaluate("embedded:heron", "one_hop", "text", limit=8)
            >>> results.estimate("text").n
            8
        """
        return statistics.estimate(self._part(arm, task, metric), metric)

    def compare(self, arm: str, other: str, task: str | None = None, metric: str | None = None) -> Comparison:
        """The paired difference `arm - other` on the examples that both answered.

        Args:
            arm, other: labels, each one of `arms`.
            task, metric: as in `estimate`.

        Returns:
            The difference with its 95 % interval and p-value, whether the sample resolves it, and which difference
            a sample of this size could resolve.

        Raises:
            UserError: no such arm, task or metric.

        Example:
            >>> import latentwire as lw
            >>> results = lw.evaluate("embedded:heron", "one_hop", ["text", "none"], limit=40)
            >>> results.compare("text", "none").resolved
            True
        """
        first, second = self._part(arm, task, metric), self._part(other, task, metric)
        shared = {(o.task, o.id) for o in first} & {(o.task, o.id) for o in second}
        if not shared:
            raise UserError(f"arms: {arm} and {other} answered no example in common, expected at least one.")
        kept = [[o for o in part if (o.task, o.id) in shared] for part in (first, second)]
        return statistics.compare(kept[0], kept[1], metric)

    def gaps(self) -> dict[str, dict[str, Gap]]:
        """By arm and task, how much of the gap between the floor and the text an arm closes.

        Empty unless `text` and `none` are among the arms.
        """
        return gaps(self.outcomes, self.evaluation.floors)

    def numbers(self) -> Metrics:
        """`{ARM: {TASK: {METRIC: {"value", "low", "high", "n"}}}}`, as `latentwire eval --json` writes it."""
        return summarize(self.outcomes)

    def table(self) -> Table:
        """Scores, intervals and paired differences, one row for each task and arm."""
        return score_tables.scores(self.evaluation, self.leaking, self.question_aware)

    def to_pandas(self) -> DataFrame:
        """The outcomes as a DataFrame: one row for each outcome, one column for each metric.

        Raises:
            UserError: pandas is not installed.

        Example:
            >>> import latentwire as lw
            >>> frame = lw.evaluate("embedded:heron", "one_hop", "text", limit=4).to_pandas()
            >>> len(frame)
            4
        """
        pandas = _pandas()
        fields = ("task", "arm", "id", "group", "prediction", "error", "tokens")
        lines = [{name: getattr(o, name) for name in fields} | o.metrics for o in self.outcomes]
        return pandas.DataFrame(lines)

    def scores_to_pandas(self) -> DataFrame:
        """Every metric of every arm and task as a DataFrame with its interval, one row for each number.

        Raises:
            UserError: pandas is not installed.
        """
        lines = [
            {"arm": arm, "task": task, "metric": metric, **number}
            for arm, by_task in self.numbers().items()
            for task, by_metric in by_task.items()
            for metric, number in by_metric.items()
        ]
        return _pandas().DataFrame(lines)

    def _part(self, arm: str, task: str | None, metric: str | None) -> list[Outcome]:
        arms, names = by_arm(self.outcomes), self.tasks
        if arm not in arms:
            raise UserError(f"arm: found {arm!r}, expected {one_of(arm, arms)}.")
        if task is not None and task not in names:
            raise UserError(f"task: found {task!r}, expected {one_of(task, names)}.")
        part = statistics.members(arms[arm], task or names[-1])
        known = list(part[0].metrics) if part else []
        if metric is not None and not all(metric in outcome.metrics for outcome in part):
            raise UserError(f"metric: found {metric!r}, expected {one_of(metric, known)}.")
        return part

    def _shown(self) -> Iterator[Table | str]:
        yield self.table()
        yield from wire_tables.followed(self.outcomes)
        if (wrong := score_tables.errors(self.evaluation)) is not None:
            yield wrong

    def __str__(self) -> str:
        return text_of(*self._shown())

    __repr__ = __str__


def evaluate(
    model: ModelLike,
    tasks: TaskLike | Sequence[TaskLike],
    wires: WireLike | Arm | Sequence[WireLike | Arm] = DEFAULT_WIRES,
    *,
    data: str | PathLike[str] | None = None,
    include_path: str | PathLike[str] | None = None,
    split: Split = "test",
    limit: int | None = None,
    controls: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Let a model answer tasks over several wires, every wire on the same examples.

    Args:
        model: the reader, loaded or by name.
        tasks: tasks, groups of tasks (`tiers`), or their names; `latentwire.task` makes one of your own examples.
        wires: wires or arms, as objects or spelled `WIRE[:VARIANT][@READER]`.
        data: the file of a task that is read from one, such as `squad`.
        include_path: a folder with lm-eval YAML tasks. Their `!function` code runs: name only a folder you trust.
        split: which examples: `train`, `validation` or `test`.
        limit: the first N examples of each task; None takes all.
        controls: add `text`, `none` and the controls of every trained wire.
        progress: called with arm, task and the number of examples just answered.

    Returns:
        Outcomes and statistics; print it for the table.

    Raises:
        UserError: an unknown name, data that cannot be read, or a prompt longer than the model.

    Example:
        >>> import latentwire as lw
        >>> results = lw.evaluate("embedded:heron", "one_hop", ["text", "none"], limit=20)
        >>> results.arms
        ['text', 'none']
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected a whole number of examples, 1 or more.")
    name = model.name if isinstance(model, LM) else str(model)
    arms = as_arms(wires, name, controls=controls)
    chosen = as_tasks(tasks, _path(data), _path(include_path))
    lm = as_model(model)
    readers = readers_of(arms, lm, name, LM.load)
    evaluation = evaluate_readers(readers, chosen, arms, split=split, limit=limit, progress=progress)
    return Results(
        evaluation,
        leaking=tuple(arm.label for arm in arms if arm.leaks),
        question_aware=tuple(arm.label for arm in arms if arm.wire.question_aware),
    )


def _path(value: str | PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UserError("pandas: not installed, expected it for a DataFrame; pip install pandas.") from error
    return pandas

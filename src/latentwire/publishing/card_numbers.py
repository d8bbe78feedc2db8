"""What was measured of a run: the evaluations that read what it trained, and what is reported beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.evaluation.arms import VARIANTS
from latentwire.runs.store import ENDED, Run, runs
from latentwire.wires import CONTROLS

METRICS = ("exact_match", "f1", "acc", "acc_norm", "primary")
"""The metrics of a card, in this order; `metrics.json` beside it has all."""


@dataclass(frozen=True)
class CardRow:
    """One metric of one arm on one task.

    Attributes:
        stage: the evaluation.
        wire: the arm as the study wrote it.
        own: whether what was trained is what is read: no control, and no arm of another stage.
        low, high: the 95 % interval; None where the sample cannot bound it.
    """

    stage: str
    arm: str
    wire: str
    own: bool
    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> str:
        """`0.390 [0.360, 0.419]`."""
        bounds = ["?" if bound is None else f"{bound:.3f}" for bound in (self.low, self.high)]
        return f"{self.value:.3f} [{', '.join(bounds)}]"


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a run.

    Attributes:
        reading: those that read what it trained, by stage.
        beside: others of the same study on the same examples, which start from no trained weights.
    """

    reading: dict[str, Run]
    beside: dict[str, Run]

    @classmethod
    def of(cls, run: Run, root: Path) -> Evaluations:
        """Those in the folder of all runs, the newest of each stage that ended; changed ones do not count."""
        reading: dict[str, Run] = {}
        beside: dict[str, Run] = {}
        for other in runs(root, run.record.study):
            if other.record.kind != "evaluate" or other.record.status not in ENDED:
                continue
            try:
                other.check_results()
            except UserError:
                continue
            if any(parent.run == run.record.run for parent in other.record.parents.values()):
                reading[other.record.stage] = other
            elif not other.record.parents:
                beside[other.record.stage] = other
        asked = [_asked(other) for other in reading.values()]
        return cls(reading, {name: other for name, other in beside.items() if _asked(other) in asked})

    def rows(self, stage: str) -> list[CardRow]:
        """Every metric of a card. stage: the one that trained."""
        found: list[CardRow] = []
        for trained, group in ((True, self.reading), (False, self.beside)):
            for name, run in group.items():
                found += _rows(name, run, stage if trained else "")
        return found

    def floors(self) -> dict[str, dict[str, float]]:
        """By task, what is earned without reading: `chance`, `type_floor`."""
        floors: dict[str, dict[str, float]] = {}
        for run in (*self.reading.values(), *self.beside.values()):
            floors |= (run.record.results or {}).get("floors", {})
        return {task: of for task, of in floors.items() if of}

    def settings(self) -> dict[str, Any]:
        """Tasks, split and limit of the evaluations; empty without any."""
        for run in self.reading.values():
            configuration = run.record.configuration
            return {key: configuration.get(key) for key in ("tasks", "split", "limit")}
        return {}


def _asked(run: Run) -> tuple[Any, ...]:
    configuration = run.record.configuration
    return tuple(configuration.get("tasks") or ()), configuration.get("split"), configuration.get("limit")


def _rows(name: str, run: Run, stage: str) -> Iterator[CardRow]:
    configuration = run.record.configuration
    arms: dict[str, str] = configuration.get("arms", {})
    starts = configuration.get("start_from")
    for arm, tasks in run.metrics().items():
        wire = arms.get(arm, arm)
        trained = wire.partition("@")[0].split(":")
        own = bool(stage) and (starts == stage or trained[:2] == ["stage", stage])
        own = own and not {*trained[1:]} & {*VARIANTS, *CONTROLS} and trained[0].partition(",")[0] != "none"
        for task, metrics in tasks.items():
            for metric in METRICS:
                if (number := metrics.get(metric)) is not None:
                    yield CardRow(
                        name,
                        arm,
                        wire,
                        own,
                        task,
                        metric,
                        number["value"],
                        number["low"],
                        number["high"],
                        number["n"],
                    )

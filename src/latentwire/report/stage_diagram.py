"""A study as a diagram: the model on the left, stages in columns after what they need, lines between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire.report.gathered import Gathered
from latentwire.report.wording import duration, plain

WIDTH, HEIGHT = 218, 74
ACROSS, DOWN = 74, 18
STATUS_WORDS = {
    "done": "done",
    "rejected": "rejected",
    "failed": "failed",
    "interrupted": "interrupted",
    "running": "running",
    "not run": "not run",
}


@dataclass(frozen=True)
class StageBox:
    """A box of the diagram: a stage, or the model that all begin from.

    Attributes:
        name: The stage's.
        kind: `evaluate`, `finetune`, `wire`, or `model`.
        status: As in `summary.json`; empty for the model.
        result: Its most telling number, in words.
        took: How long it ran.
        needs: The boxes that it comes after.
        x, y: The upper left corner.
    """

    name: str
    kind: str
    status: str
    result: str
    took: str
    needs: tuple[str, ...]
    x: int = 0
    y: int = 0

    @property
    def spoken(self) -> str:
        """The box in words."""
        after = f"after {' and '.join(self.needs)}" if self.needs else ""
        return ", ".join(part for part in (self.name, self.kind, self.status, self.result, after) if part)


@dataclass(frozen=True)
class Diagram:
    """Boxes with their places, lines as SVG paths, and the size of all of it."""

    boxes: tuple[StageBox, ...]
    lines: tuple[str, ...]
    width: int
    height: int


def diagram(study: Gathered) -> Diagram:
    """The diagram of a study."""
    boxes = list(_boxes(study))
    columns = _columns({box.name: box.needs for box in boxes})
    tallest = max(len(column) for column in columns)
    height = tallest * HEIGHT + (tallest - 1) * DOWN
    by_name = {box.name: box for box in boxes}
    placed: dict[str, StageBox] = {}
    for at, names in enumerate(columns):
        top = (height - len(names) * HEIGHT - (len(names) - 1) * DOWN) // 2
        for row, name in enumerate(names):
            box = by_name[name]
            x, y = at * (WIDTH + ACROSS), top + row * (HEIGHT + DOWN)
            placed[name] = StageBox(**{**vars(box), "x": x, "y": y})
    lines = [_line(placed[need], box) for box in placed.values() for need in box.needs if need in placed]
    width = len(columns) * WIDTH + (len(columns) - 1) * ACROSS
    return Diagram(tuple(placed.values()), tuple(lines), width, height)


def _boxes(study: Gathered) -> list[StageBox]:
    stages = study.outline.get("stages", {})
    model = study.outline.get("model") or "the model"
    found = [StageBox(model, "model", "", "", "", ())]
    for name, stage in study.summary["stages"].items():
        run = study.runs.get(name)
        asked = stages.get(name, {})
        needs = asked.get("needs") or (list(run.record.parents) if run else [])
        kind = asked.get("kind") or (run.record.kind if run else "stage")
        found.append(
            StageBox(
                name,
                kind,
                STATUS_WORDS.get(stage["status"], stage["status"]),
                _result(study, name, stage),
                duration(run.seconds) if run else "",
                tuple(need for need in needs if need in study.summary["stages"]) or (model,),
            )
        )
    return found


def _result(study: Gathered, name: str, stage: Mapping[str, Any]) -> str:
    trained = study.derived.get("finetunings", {}).get(name)
    if trained and "best_loss" in trained:
        return f"best loss {plain(trained['best_loss'])} at step {trained['best_step']:,}"
    arms = [arm for arm in stage["metrics"] if arm != "none"] or list(stage["metrics"])
    if not arms:
        return ""
    tasks = stage["metrics"][arms[0]]
    task = "macro" if "macro" in tasks else next(iter(tasks), None)
    if task is None:
        return ""
    more = f", {len(arms) - 1} more" if len(arms) > 1 else ""
    return f"{arms[0]} {plain(next(iter(tasks[task].values()))['value'])} on {task}{more}"


def _columns(needs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Boxes by their distance from the model; within a column, beside what they need."""
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            depth[name] = 0  # a circle ends here
            depth[name] = max((of(need) + 1 for need in needs[name] if need in needs), default=0)
        return depth[name]

    for name in needs:
        of(name)
    columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in needs:
        columns[depth[name]].append(name)
    rank: dict[str, float] = {}
    for at, column in enumerate(columns):
        if at > 1:
            column.sort(key=lambda name: _mean([rank[need] for need in needs[name] if need in rank]))
        leading = at == 1 and any(name in of_later for of_later in map(set, needs.values()) for name in column)
        if leading:  # stages that nothing waits for come first, so that lines do not cross them
            waited = {need for each in needs.values() for need in each}
            column.sort(key=lambda name: name in waited)
        for row, name in enumerate(column):
            rank[name] = row
    return columns


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _line(start: StageBox, end: StageBox) -> str:
    x, y = start.x + WIDTH, start.y + HEIGHT // 2
    to_x, to_y = end.x, end.y + HEIGHT // 2
    middle = to_x - ACROSS // 2
    if y == to_y:
        return f"M{x} {y}H{to_x}"
    return f"M{x} {y}H{middle - 20}C{middle} {y} {middle} {to_y} {to_x - 12} {to_y}H{to_x}"

"""What the page's charts draw, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from latentwire.report.effect_rows import bars
from latentwire.report.gathered import Gathered
from latentwire.report.score_rows import ScoreTable
from latentwire.report.training_history import histories
from latentwire.studies.curves import points


def charts(study: Gathered, scores: ScoreTable | None, effects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The data of all charts of a study."""
    return {
        "scores": _scores(study, scores),
        "bars": bars(effects),
        "trainings": histories(study),
        "sizes": _sizes(study),
    }


def _scores(study: Gathered, table: ScoreTable | None) -> dict[str, Any]:
    if table is None:
        return {"tasks": [], "readings": [], "floors": []}
    blind = {reading.name for reading in study.readings.values() if reading.blind}
    return {
        "tasks": table.tasks,
        "readings": [
            {
                "reading": f"{row.stage}/{row.arm}",
                "blind": f"{row.stage}/{row.arm}" in blind,
                "leaks": row.leaks,
                "task": task,
                **{key: number[key] for key in ("value", "low", "high")},
            }
            for row in table.rows
            for task, number in zip(table.tasks, row.numbers, strict=True)
            if number is not None
        ],
        "floors": [
            {"floor": row.arm, "task": task, "value": number["value"]}
            for row in table.floors
            for task, number in zip(table.tasks, row.numbers, strict=True)
            if number is not None
        ],
    }


def _sizes(study: Gathered) -> list[dict[str, Any]]:
    """Arms by their size, if there are any that are neither the text nor nothing."""
    found = [asdict(each) for each in points(study.summary)]
    others = any(each["series"] not in ("text", "none") for each in found)
    return found if others else []

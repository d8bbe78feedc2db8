"""What is kept and what is recovered: effects and gaps closed, each raw and above its floor, as bars and table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from latentwire.evaluation.gaps import gaps
from latentwire.report.gathered import Gathered

BARS = ("retention", "recovery", "gap closed")
"""The effects that are shares of something, and so are drawn as bars."""


def effect_rows(study: Gathered) -> list[dict[str, Any]]:
    """Every effect of every reading on every task: `effect`, `of`, `task`, `raw`, `above_floor`, `floor`,
    `floor_is`, `at_floor`, `n`."""
    rows = [{**each, "effect": each["effect"].replace("_", " ")} for each in study.derived.get("effects", [])]
    return [*rows, *_gaps(study)]


def bars(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are drawn."""
    return [row for row in rows if row["effect"] in BARS and "/" not in row["task"]]


def _gaps(study: Gathered) -> Iterator[dict[str, Any]]:
    """The gap that each arm closes between the question alone and the text, in stages that have both."""
    floors = study.floors()
    for stage in study.summary["stages"]:
        of_stage = [reading for reading in study.readings.values() if reading.stage == stage]
        if all(reading.blind or reading.arm == "text" for reading in of_stage):
            continue
        outcomes = [outcome for reading in of_stage if not reading.leaks for outcome in reading.outcomes]
        for arm, by_task in gaps(outcomes, floors).items():
            for task, gap in by_task.items():
                yield {
                    "effect": "gap closed",
                    "of": f"{stage}/{arm}",
                    "task": task,
                    "raw": asdict(gap.retention),
                    "above_floor": asdict(gap.closed),
                    "floor": gap.floor,
                    "floor_is": gap.floor_is,
                    "at_floor": gap.closed.low is not None and gap.closed.low <= 0,
                    "n": gap.n,
                }

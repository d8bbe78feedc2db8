"""Several studies side by side: readings of one name, and paired differences where the examples are equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire.evaluation.statistics import Comparison, compare
from latentwire.report.gathered import Gathered


@dataclass(frozen=True)
class AcrossRow:
    """A reading on one task.

    Attributes:
        reading: STAGE/ARM.
        task: `macro`, or the task that it has.
        numbers: By study, its number; None where it has none.
        differences: By study after the first, its paired difference from the first; None where examples differ.
        refused: By study after the first, why there is none; empty where there is one.
    """

    reading: str
    task: str
    numbers: list[Mapping[str, Any] | None]
    differences: list[Comparison | None]
    refused: list[str]


def across(studies: Sequence[Gathered]) -> list[AcrossRow]:
    """A row for each reading that is in more than one study."""
    names = [dict.fromkeys(study.readings) for study in studies]
    contents = [_contents(study) for study in studies]
    rows = []
    for reading in dict.fromkeys(name for each in names for name in each):
        if sum(reading in each for each in names) < 2:
            continue
        metrics = [_metrics(study, reading) for study in studies]
        task = next(
            (t for t in ("macro", *next(m for m in metrics if m)) if all(t in m for m in metrics if m)), ""
        )
        if not task:
            continue
        numbers = [next(iter(found[task].values())) if found else None for found in metrics]
        differences: list[Comparison | None] = []
        refused = []
        for at in range(1, len(studies)):
            reason = _refusal(studies[0], studies[at], reading, contents[0], contents[at])
            refused.append(reason)
            differences.append(
                None
                if reason
                else compare(studies[at].readings[reading].outcomes, studies[0].readings[reading].outcomes)
            )
        rows.append(AcrossRow(reading, task, numbers, differences, refused))
    return rows


def _metrics(study: Gathered, reading: str) -> Mapping[str, Any]:
    if reading not in study.readings:
        return {}
    stage, _, arm = reading.partition("/")
    found: Mapping[str, Any] = study.summary["stages"][stage]["metrics"][arm]
    return found


def _contents(study: Gathered) -> dict[tuple[str, str], tuple[str, str, tuple[str, ...]]]:
    """By task and id what each kept example asks."""
    return {
        (line["task"], line["id"]): (line["context"], line["question"], tuple(line["gold"]))
        for _, line in study.prompts()
    }


def _refusal(first: Gathered, other: Gathered, reading: str, *contents: Mapping[tuple[str, str], Any]) -> str:
    """Why a reading of two studies cannot be paired; empty if it can."""
    if reading not in first.readings or reading not in other.readings:
        return "not in both"
    mine, theirs = ({(o.task, o.id) for o in each.readings[reading].outcomes} for each in (first, other))
    if mine != theirs:
        return f"other examples: {len(mine & theirs):,} of {len(mine | theirs):,} are shared"
    changed = sum(contents[0].get(key) != contents[1].get(key) for key in mine)
    return f"{changed:,} examples of the same id have other texts" if changed else ""

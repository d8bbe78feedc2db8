"""Readings over several seeds as a table, and the seeds of a study as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from latentwire.studies.spec import Study

NOTE = (
    "Intervals are of a hierarchical bootstrap over seeds and groups. Spread: the standard deviation between "
    "seeds, which are in the order of the study."
)


def over_seeds(
    pooled: Mapping[str, Mapping[str, Any]], number: Callable[[Mapping[str, Any]], str], *, brief: bool
) -> tuple[list[str], list[list[str]], str]:
    """The header, the rows and the note of the table.

    Args:
        pooled: by reading and task, as `summary.json` holds it.
        number: writes a value with its interval.
        brief: `macro` only.
    """
    rows = [
        [
            reading,
            task,
            number(value),
            f"{value['spread']:.3f}",
            ", ".join(f"{one:.3f}" for one in value["by_seed"].values()),
            f"{value['n']:,}",
        ]
        for reading, tasks in pooled.items()
        for task, value in tasks.items()
        if not brief or task == "macro"
    ]
    return ["reading", "task", "mean over seeds", "spread", "each seed", "n"], rows, NOTE


def said(study: Study) -> str:
    """The seeds of a study's trainings, and what they mean for its claims, as a sentence."""
    seeds = sorted({seed for stage in study.stages.values() for seed in stage.seeds().values()})
    if study.seeds:
        return f"Trainings have the seeds {', '.join(map(str, seeds))}; comparisons of them are over all seeds."
    if len(seeds) > 1:
        return f"Trainings have the seeds {', '.join(map(str, seeds))}; each reading is of one seed."
    return f"All trainings have the seed {seeds[0]}: every claim about them is single-seed." if seeds else ""

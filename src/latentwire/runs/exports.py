"""Runs as one table for a paper or a spreadsheet: one row an arm, every number with its interval."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from latentwire.errors import UserError
from latentwire.runs.run_tables import in_words
from latentwire.runs.sides import training_seeds
from latentwire.runs.store import ENDED, Run

Format = Literal["csv", "markdown", "latex"]
ENDINGS: dict[str, Format] = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


@dataclass(frozen=True)
class ArmRow:
    """One arm of one run.

    Attributes:
        run: its run, `STUDY/STAGE/RUN`.
        study, stage, arm: where it belongs.
        wire: how the arm is spelled.
        model: the model that reads.
        seeds: of the trainings that its weights come from.
        status: the run's.
        metrics: by task, the chosen metric's name and number.
    """

    run: str
    study: str
    stage: str
    arm: str
    wire: str
    model: str
    seeds: str
    status: str
    metrics: dict[str, tuple[str, Mapping[str, Any]]]


def arm_rows(
    root: Path, runs: Sequence[Run], *, metric: str | None = None, tasks: Sequence[str] = ()
) -> list[ArmRow]:
    """The arms of finished evaluations, in the order of the runs.

    Args:
        root: the folder of all runs, where the parents are.
        runs: which runs; those without metrics are left out.
        metric: the primary one of each task if not given.
        tasks: only these; all but the members of families if none is given.

    Raises:
        UserError: metrics have changed since a run ended, or nothing is left to export.
    """
    rows = []
    for run in runs:
        if run.record.status not in ENDED:
            continue
        run.check_results()
        seeds = ", ".join(map(str, training_seeds(root, run)))
        for arm, by_task in run.metrics().items():
            chosen = {task: _chosen(numbers, metric) for task, numbers in by_task.items() if _wanted(task, tasks)}
            metrics = {task: found for task, found in chosen.items() if found is not None}
            if metrics:
                rows.append(_row(run, arm, seeds, metrics))
    if not rows:
        raise UserError("export: found no finished evaluation with such metrics, expected at least one.")
    return rows


def written(rows: Sequence[ArmRow], how: Format) -> str:
    """Rows as CSV with unrounded numbers, or as a Markdown or LaTeX (booktabs) table with three digits."""
    if how == "csv":
        return _csv(rows)
    columns, cells = _cells(rows)
    if how == "markdown":
        lines = [columns, ["---"] * len(columns), *cells]
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    body = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in [columns, *cells]]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(columns)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _wanted(task: str, tasks: Sequence[str]) -> bool:
    return task in tasks if tasks else "/" not in task


def _chosen(numbers: Mapping[str, Any], metric: str | None) -> tuple[str, Mapping[str, Any]] | None:
    name = metric or next(iter(numbers), "")
    return (name, numbers[name]) if name in numbers else None


def _row(run: Run, arm: str, seeds: str, metrics: dict[str, tuple[str, Mapping[str, Any]]]) -> ArmRow:
    record = run.record
    arms = record.configuration.get("arms")
    wire = arms.get(arm, arm) if isinstance(arms, dict) else arm
    model = str(record.configuration.get("model", ""))
    return ArmRow(record.run, record.study, record.stage, arm, wire, model, seeds, run.status, metrics)


def _tasks(rows: Sequence[ArmRow]) -> list[str]:
    """All tasks in order, `macro` last."""
    named = list(dict.fromkeys(task for row in rows for task in row.metrics))
    return [task for task in named if task != "macro"] + ["macro"] * ("macro" in named)


def _csv(rows: Sequence[ArmRow]) -> str:
    file = StringIO()
    tasks = _tasks(rows)
    numbers = [f"{task}{suffix}" for task in tasks for suffix in ("", ".low", ".high", ".n", ".metric")]
    names = ["run", "study", "stage", "arm", "wire", "model", "seeds", "status"]
    table = csv.writer(file, lineterminator="\n")
    table.writerow([*names, *numbers])
    for row in rows:
        cells: list[Any] = [getattr(row, name) for name in names]
        for task in tasks:
            metric, number = row.metrics.get(task, ("", {}))
            cells += [number.get(key) for key in ("value", "low", "high", "n")] + [metric]
        table.writerow(cells)
    return file.getvalue()


def _cells(rows: Sequence[ArmRow]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of a table to read: what is the same everywhere is left out."""
    tasks = _tasks(rows)
    names = [name for name in ("study", "stage", "seeds") if len({getattr(row, name) for row in rows}) > 1]
    columns = [*names, "arm", "wire"]
    for task in tasks:
        metrics = {row.metrics[task][0] for row in rows if task in row.metrics}
        columns.append(f"{task} {metrics.pop()}" if len(metrics) == 1 else task)
    cells = []
    for row in rows:
        shown = [in_words(row.metrics[task][1]) if task in row.metrics else "" for task in tasks]
        counts = sorted({int(number["n"]) for task, (_, number) in row.metrics.items() if task != "macro"})
        n = "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        cells.append([*(str(getattr(row, name)) for name in names), row.arm, row.wire, *shown, n])
    return [*columns, "n"], cells

"""The run folder that `latentwire eval -o FOLDER` leaves: the same files as an evaluation of a study has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.evaluation.eval_report import Report
from latentwire.evaluation.outcomes import Outcome, write_outcomes
from latentwire.evaluation.summarize import summarize
from latentwire.files import write_atomically
from latentwire.runs import provenance
from latentwire.runs.identity import file_sha256, identity, model_files, model_folder
from latentwire.runs.store import OUTCOMES, Input, Record, Run
from latentwire.tasks.base import Task, examples_sha256
from latentwire.version import __version__

STUDY = "eval"
"""What stands in `run.json` in place of a study's name."""
SAMPLES = 20
"""How many examples of each task are kept with their answers, for reading."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something: an evaluation never overwrites another's results.

    Raises:
        UserError: it is a file or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "files in it" if folder.is_dir() else "a file"
        raise UserError(f"out: found {what} at {folder}, expected a new or empty folder.")


@contextmanager
def recorded(
    folder: Path,
    configuration: Mapping[str, Any],
    models: Sequence[str],
    tasks: Sequence[Task],
    files: Mapping[str, Path],
) -> Iterator[Run]:
    """A run in `folder` whose `run.json` is complete but for results before the work starts.

    When the block ends, it is done, `failed` with the error's first line, or `interrupted`.

    Args:
        folder: new or empty.
        configuration: what was asked for, as JSON; `limit` is the number of examples of each task.
        models: as the command line names them; their weights are hashed.
        tasks: their examples are hashed.
        files: by name whatever else is read: the tasks' data, an adapter, trained wires; a folder is hashed whole.

    Raises:
        UserError: the folder cannot be used.
    """
    check_folder(folder)
    limit = configuration.get("limit")
    inputs = {
        f"model {name}": Input(path=name, sha256=identity(model_files(model_folder(name)))) for name in models
    }
    inputs |= {name: Input(path=str(path), sha256=_content(path)) for name, path in files.items()}
    examples = {task.name: examples_sha256(task.examples("test", limit)) for task in tasks}
    weights = {name: given.sha256 for name, given in inputs.items()}
    record = Record(
        run=folder.name,
        study=STUDY,
        stage=folder.name,
        kind="evaluate",
        identity=identity({**configuration, "inputs": weights, "examples": examples, "version": __version__}),
        configuration={**configuration, "examples_sha256": examples},
        seeds={},
        inputs=inputs,
        parents={},
        **provenance.gather(),
    )
    run = Run(folder, record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run.write()
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written: {error.strerror}.") from error
    with run.work():
        try:
            yield run
        except Exception as error:
            run.fail(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise


def _content(path: Path) -> str:
    """The hash of a file, or of all files in a folder."""
    if path.is_file():
        return file_sha256(path)
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return identity({file.relative_to(path).as_posix(): file_sha256(file) for file in inside})


def finish(run: Run, report: Report, limit: int | None, seconds: float) -> None:
    """Write `outcomes.jsonl`, `metrics.json`, `report.json` and `samples/`, and mark the run as done.

    Args:
        run: the run that `recorded` gave.
        report: what came of the evaluation.
        limit: the number of examples of each task; None for all.
        seconds: how long it took.
    """
    result = report.result
    write_outcomes(run.folder / OUTCOMES, result.outcomes)
    write_atomically(run.folder / "metrics.json", json.dumps(summarize(result.outcomes), indent=1) + "\n")
    write_atomically(run.folder / "report.json", json.dumps(report.numbers(), indent=1) + "\n")
    for task in report.tasks:
        path = run.folder / "samples" / f"{task.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(_sample_lines(task, result.outcomes, limit)))
    run.finish(
        {
            "floors": result.floors,
            "unstable": result.unstable,
            "skipped": _nested(result.skipped),
            "partners": _nested(result.partners),
            "leaks": [arm.label for arm in report.arms if arm.leaks],
            "question_aware": [arm.label for arm in report.arms if arm.wire.question_aware],
            "tokens": sum(outcome.tokens for outcome in result.outcomes),
            "seconds": round(seconds, 1),
        }
    )


def _sample_lines(task: Task, outcomes: Sequence[Outcome], limit: int | None) -> Iterator[str]:
    """A line for each of the first examples: what was asked, what is right, and what each arm said."""
    for example in task.examples("test", SAMPLES if limit is None else min(SAMPLES, limit)):
        said = {o.arm: o.prediction for o in outcomes if (o.task, o.id) == (task.name, example.id)}
        line = {
            "id": example.id,
            "context": example.context,
            "question": example.question,
            "answers": example.answers or example.choices[example.gold : example.gold + 1],
            "predictions": said,
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _nested(by_arm_and_task: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for (arm, task), value in by_arm_and_task.items():
        nested.setdefault(arm, {})[task] = value
    return nested

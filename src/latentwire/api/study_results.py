"""`run_study` and `open_run`: studies carried out, and runs read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from latentwire.api.results import Results
from latentwire.evaluation.evaluate import Evaluation
from latentwire.evaluation.outcomes import read_outcomes
from latentwire.printing import text_of
from latentwire.runs import run_tables, store
from latentwire.runs.log import Log
from latentwire.runs.store import OUTCOMES, Record, Run
from latentwire.studies import loading, runner, study_summary, summary_tables
from latentwire.studies.shape import Summary
from latentwire.studies.spec import Study


@dataclass(frozen=True)
class OpenedRun:
    """A run's folder, read.

    Attributes:
        run: the folder and what its `run.json` says.

    Example:
        ```python
        run = latentwire.open_run("quickstart/baseline")
        print(run.status, run.results)
        ```
    """

    run: Run

    @property
    def folder(self) -> Path:
        """Where the run's files are."""
        return self.run.folder

    @property
    def record(self) -> Record:
        """`run.json`: configuration, versions, inputs with their SHA-256, parents, times and results."""
        return self.run.record

    @property
    def status(self) -> str:
        """`running`, `done`, `rejected`, `failed` or `interrupted`."""
        return self.run.status

    @property
    def results(self) -> Results | None:
        """Outcomes and statistics of an evaluation; None for a training.

        Raises:
            UserError: the files have changed since the run ended.
        """
        self.run.check_results()
        path = self.folder / OUTCOMES
        if not path.is_file():
            return None
        recorded = self.record.results or {}
        return Results(
            Evaluation(outcomes=read_outcomes(path), floors=recorded.get("floors", {})),
            leaking=tuple(recorded.get("leaks", ())),
            question_aware=tuple(recorded.get("question_aware", ())),
        )

    @property
    def diagnostics(self) -> list[dict[str, Any]]:
        """One dictionary for each logged step of a training: step, loss, learning rate and so on."""
        path = self.folder / "diagnostics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def checkpoint(self, name: str = "best") -> Path | None:
        """The folder of a checkpoint, `best` or `final`; None where the run has none."""
        folder = self.folder / "checkpoints" / name
        return folder if folder.is_dir() else None

    def __str__(self) -> str:
        return text_of(*run_tables.shown(self.run))

    __repr__ = __str__


@dataclass(frozen=True)
class StudyResults:
    """What a study came to; printing it shows the tables of the command `run`.

    Attributes:
        study: the study as it was carried out.
        folder: holds `summary.json`, `summary.md` and a folder for each stage.
        summary: what `summary.json` says.
        runs: by stage, the run that counts.

    Example:
        ```python
        results = latentwire.run_study("quickstart")
        print(results.failed_gates, results.runs["baseline"].results)
        ```
    """

    study: Study
    folder: Path
    summary: Summary
    runs: dict[str, OpenedRun]

    @property
    def failed_gates(self) -> list[str]:
        """Names of the gates that did not hold."""
        return list(study_summary.failed_gates(self.summary))

    def __str__(self) -> str:
        return text_of(summary_tables.screen(self.study, self.summary), width=200)

    __repr__ = __str__


def run_study(
    study: str | PathLike[str] | Study,
    changes: Mapping[str, Any] | Sequence[str] = (),
    *,
    stages: Sequence[str] = (),
    runs: str | PathLike[str] = "runs",
    fresh: bool = False,
    preset: str | None = None,
) -> StudyResults:
    """Carry out a study: what is done is not done again, what was interrupted goes on.

    Args:
        study: a template's name, a YAML file, or a study that has been loaded.
        changes: `{"limit": 40, "stages.fit.steps": 100}`, or `KEY=VALUE` texts as `--set` takes them.
        stages: only these stages and what they need.
        runs: the folder of all runs.
        fresh: carry out again what is done already.
        preset: size of every wire stage: `smoke` or `hero`.

    Returns:
        The summary, and the run of each stage.

    Raises:
        UserError: the study cannot be carried out.
        StageFailed: a stage failed; the next call goes on from there.

    Example:
        ```python
        results = latentwire.run_study("quickstart", {"limit": 100})
        print(results)
        results.runs["baseline"].results.estimate("text")
        ```
    """
    if isinstance(study, Study):
        made = study
    else:
        pairs = changes.items() if isinstance(changes, Mapping) else ()
        texts = [f"{key}={json.dumps(value)}" for key, value in pairs] or list(changes)
        made = loading.load(str(study), texts, preset)
    carried = runner.run(made, Path(runs), Log(), stages=stages, fresh=fresh)
    opened = {stage: OpenedRun(run) for stage, run in carried.runs.items()}
    return StudyResults(made, carried.folder, carried.summary, opened)


def open_run(run: str | PathLike[str], *, runs: str | PathLike[str] = "runs") -> OpenedRun:
    """Open a run that was carried out earlier.

    Args:
        run: its folder, or `STUDY/STAGE` for the newest run of a stage.
        runs: the folder of all runs.

    Returns:
        Its record, its outcomes and statistics, its diagnostics and checkpoints.

    Raises:
        UserError: there is no such run.

    Example:
        ```python
        latentwire.open_run("quickstart/baseline").results.to_pandas()
        ```
    """
    return OpenedRun(store.find(Path(runs), str(run)))

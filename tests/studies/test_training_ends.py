"""How a stage ends whose training cannot go on: it fails, or it stops with a snapshot to go on from."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from latentwire.runs.log import Log
from latentwire.runs.store import runs
from latentwire.studies import loading, runner
from latentwire.studies.runner import StageFailed
from latentwire.training.diagnostics import Diagnostics
from tests.faults.crashes import command, forked
from tests.support.studies import small_study, written


def study(**finetuning: Any) -> dict[str, Any]:
    """One finetuning and an evaluation of it."""
    whole = small_study()
    stages = {name: whole["stages"][name] for name in ("prefix_ft", "plain_after")}
    kept = {"name", "model", "tasks", "limit", "finetuning"}
    return {
        **{key: value for key, value in whole.items() if key in kept},
        "finetuning": {**whole["finetuning"], **finetuning},
        "stages": stages,
    }


def test_a_training_that_diverges_fails_its_stage_and_nothing_starts_from_it(tmp_path: Path) -> None:
    path = written(tmp_path, study(learning_rate=1e4, clip=1e9, steps=30, eval_steps=30, schedule="constant"))
    with pytest.raises(
        StageFailed, match=r"prefix_ft failed with NotFinite: step \d+.*the batch holds world/one_hop"
    ):
        runner.run(loading.load(str(path)), tmp_path / "runs", Log())
    (run,) = runs(tmp_path / "runs")
    assert (run.record.stage, run.status) == ("prefix_ft", "failed")
    assert run.record.error is not None
    assert "expected finite numbers" in run.record.error
    summary = json.loads((tmp_path / "runs" / "small" / "summary.json").read_text())
    assert summary["stages"]["plain_after"]["status"] == "not run"


def test_a_learning_rate_that_is_not_finite_is_bad_input(tmp_path: Path) -> None:
    path = written(tmp_path, study(learning_rate=float("inf")))
    status = forked(lambda: command("run", str(path), "--runs", str(tmp_path / "runs")), tmp_path / "log")
    assert status == 2
    said = (tmp_path / "log").read_text()
    assert "learning_rate" in said
    assert "finite number" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "latentwire: stopped.")]
)
def test_a_signal_ends_a_run_with_a_snapshot_its_sentence_and_its_status(
    tmp_path: Path, number: signal.Signals, status: int, said: str
) -> None:
    path = written(tmp_path, study(steps=8, eval_steps=8, log_steps=1))

    def signalled() -> int:
        honest = Diagnostics.write

        def write(self: Diagnostics, line: dict[str, Any]) -> None:
            honest(self, line)
            if "loss" in line and line["step"] == 2:
                os.kill(os.getpid(), number)

        Diagnostics.write = write  # type: ignore[method-assign]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return command("run", str(path), "--runs", str(tmp_path / "runs"))

    assert forked(signalled, tmp_path / "log") == status
    output = (tmp_path / "log").read_text()
    assert said in output
    assert "Traceback" not in output
    (run,) = runs(tmp_path / "runs")
    assert run.status == "interrupted"
    assert f"{number.name}: stopped after step 2 of 8" in (run.folder / "log.txt").read_text()
    state = json.loads((run.folder / "checkpoints" / "last" / "state.json").read_text())
    assert state["step"] == 2

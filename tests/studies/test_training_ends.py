"""How a stage ends whose training cannot go on: it fails, or it stops with a snapshot to go on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from latentwire.runs.log import Log
from latentwire.runs.store import runs
from latentwire.studies import loading, runner
from latentwire.studies.runner import StageFailed
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
    command = [
        sys.executable,
        "-m",
        "latentwire.cli",
        "run",
        str(written(tmp_path, study(learning_rate=float("inf")))),
    ]
    ended = subprocess.run(
        [*command, "--runs", str(tmp_path / "runs")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "learning_rate" in ended.stderr
    assert "finite number" in ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "latentwire: stopped.")]
)
def test_a_signal_ends_a_run_with_a_snapshot_its_sentence_and_its_status(
    tmp_path: Path, number: signal.Signals, status: int, said: str
) -> None:
    path = written(tmp_path, study(steps=5000, eval_steps=5000, log_steps=1))
    command = [sys.executable, "-m", "latentwire.cli", "run", str(path), "--runs", str(tmp_path / "runs")]
    worker = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    stage = tmp_path / "runs" / "small" / "prefix_ft"
    deadline = time.monotonic() + 300
    while not any('"loss"' in path.read_text() for path in stage.glob("*/diagnostics.jsonl")):
        assert worker.poll() is None, "it was to be stopped and ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.send_signal(number)
    assert worker.stderr is not None
    errors = worker.stderr.read()
    assert worker.wait() == status
    assert said in errors
    assert "Traceback" not in errors
    (run,) = runs(tmp_path / "runs")
    assert run.status == "interrupted"
    assert f"{number.name}: stopped after step" in (run.folder / "log.txt").read_text()
    state = json.loads((run.folder / "checkpoints" / "last" / "state.json").read_text())
    assert state["step"] >= 1

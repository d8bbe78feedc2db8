"""`latentwire run --processes 2` with one of its processes killed: it ends, says so, and goes on later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentwire.runs.store import runs
from tests.support.studies import small_study, written

pytestmark = pytest.mark.slow
SECONDS = 240


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finetuning long enough to be struck, and an evaluation of what it leaves."""
    tuned = {"kind": "finetune", "wire": "text", "steps": 30, "eval_steps": 6, "eval_samples": 2, "samples": 0}
    read = {"kind": "evaluate", "start_from": "tuned", "arms": {"text": "text"}}
    stages = {"tuned": {**tuned, "log_steps": 1, "lora": {"rank": 2}}, "read": read}
    changes: dict[str, Any] = {"stages": stages, "limit": 4, "tasks": ["one_hop"]}
    raw = small_study() | changes
    return written(tmp_path, {key: raw[key] for key in raw if key not in ("effects", "comparisons", "gates")})


def begun(study: Path, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "latentwire.cli", "run", str(study), "--runs", str(root), "--processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def second_of(command: subprocess.Popen[str]) -> psutil.Process:
    """The process of rank 1 that the command has started."""
    for child in psutil.Process(command.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            return child
    raise AssertionError("the command has not started a second process")


def logged(root: Path, steps: int) -> bool:
    """Whether the training has logged so many steps."""
    return any(
        len(path.read_text(encoding="utf-8").splitlines()) > steps
        for path in root.glob("small/tuned/*/diagnostics.jsonl")
    )


def outcomes(root: Path) -> list[dict[str, Any]]:
    (path,) = root.glob("small/read/*/outcomes.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_killed_process_ends_the_command_cleanly_and_the_same_command_ends_with_equal_results(
    tmp_path: Path, study: Path
) -> None:
    struck, whole = tmp_path / "struck", tmp_path / "whole"
    command = begun(study, struck)
    deadline = time.monotonic() + SECONDS
    while not logged(struck, 9):  # an evaluation and a snapshot are behind it
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = psutil.Process(command.pid).children(recursive=True)
    second_of(command).send_signal(signal.SIGKILL)
    out, err = command.communicate(timeout=SECONDS)
    assert command.returncode == 1, out + err
    assert "latentwire: process 1 of 2 was ended by SIGKILL" in err
    assert "Traceback" not in err
    assert [process for process in started if process.is_running()] == [], "nothing is left at work"
    assert {run.record.stage: run.status for run in runs(struck)} == {"tuned": "interrupted"}

    for root in (struck, whole):
        again = begun(study, root)
        out, err = again.communicate(timeout=SECONDS)
        assert again.returncode == 0, out + err
        assert ("resumed at step" in out) == (root == struck)
    assert {run.record.stage: run.status for run in runs(struck)} == {"tuned": "done", "read": "done"}
    assert outcomes(struck) == outcomes(whole)

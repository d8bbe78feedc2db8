"""Claims about a study that fails, is stopped or is killed: the next call goes on to the same numbers."""

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

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.runs.store import runs
from latentwire.studies import loading, runner
from latentwire.studies.runner import Carried, StageFailed
from latentwire.studies.stages import evaluate as evaluate_stage
from latentwire.training.finetuning import finetune as finetuning
from tests.support.studies import Carry, folders, small_study, written


def test_a_failed_stage_keeps_what_was_done_and_the_next_call_goes_on(
    carry: Carry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finetune = finetuning.finetune

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(finetuning, "finetune", fail)
    with pytest.raises(
        StageFailed, match=r"prefix_ft failed with RuntimeError: out of memory \(more in .*log\.txt\)"
    ):
        carry()
    found = {run.record.stage: run for run in runs(tmp_path / "runs")}
    assert {name: run.status for name, run in found.items()} == {
        "baseline": "done",
        "ablated": "done",
        "prefix_ft": "failed",
    }
    assert "Traceback" in (found["prefix_ft"].folder / "log.txt").read_text()
    summary = json.loads((tmp_path / "runs" / "small" / "summary.json").read_text())
    assert summary["stages"]["prefix_ft"]["status"] == "failed"
    assert summary["stages"]["plain_after"] == {"run": None, "status": "not run", "metrics": {}}
    assert [each["name"] for each in summary["comparisons"]] == ["damage"]
    assert summary["derived"]["gates"][0]["held"] is None

    monkeypatch.setattr(finetuning, "finetune", finetune)
    again = carry()
    assert folders(again)["prefix_ft"] == found["prefix_ft"].folder
    assert {run.status for run in again.runs.values()} == {"done"}


def test_an_interrupted_evaluation_keeps_its_finished_tasks(
    carry: Carry, monkeypatch: pytest.MonkeyPatch, finished: Carried, tmp_path: Path
) -> None:
    evaluate, asked = evaluate_stage.evaluate_readers, []

    def interrupted(lm: LM, tasks: Any, wires: Any, **options: Any) -> Any:
        asked.append((tasks[0].name, len(wires)))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return evaluate(lm, tasks, wires, **options)

    monkeypatch.setattr(evaluate_stage, "evaluate_readers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry(stages=["baseline"])
    (run,) = runs(tmp_path / "runs")
    assert run.status == "interrupted"
    asked.clear()
    asked.append(("", 0))
    asked.append(("", 0))
    again = carry(stages=["baseline"]).runs["baseline"]
    assert again.folder == run.folder
    assert asked[2:] == [("one_hop", 0), ("choices/home", 2), ("choices/job", 2)]
    whole = finished.runs["baseline"]
    for name in ("outcomes.jsonl", "metrics.json"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert again.record.results is not None
    assert whole.record.results is not None
    assert again.record.results["floors"] == whole.record.results["floors"]


def test_a_changed_checkpoint_is_not_read(carry: Carry) -> None:
    weights = carry(stages=["prefix_ft"]).runs["prefix_ft"].folder / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"model\.safetensors is gone or not as prefix_ft wrote it"):
        carry(stages=["plain_after"])


@pytest.mark.slow
def test_killed_in_the_middle_of_a_finetuning_it_resumes_to_equal_numbers(
    finished: Carried, tmp_path: Path
) -> None:
    """`kill -9` once the first steps are on disk; the runs then say interrupted, and the next call goes on."""
    path = written(tmp_path, small_study())
    command = [sys.executable, "-m", "latentwire.cli", "run", str(path), "--runs", str(tmp_path / "runs")]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    stage = tmp_path / "runs" / "small" / "prefix_ft"
    deadline = time.monotonic() + 120
    while not any(_step(folder) >= 2 for folder in stage.glob("*/checkpoints/last")):
        assert worker.poll() is None, "it was to be killed and ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    worker.wait()

    before = {run.record.stage: run for run in runs(tmp_path / "runs")}
    assert before["prefix_ft"].status == "interrupted"
    assert before["baseline"].status == "done"
    again = runner.run(loading.load(str(path)), tmp_path / "runs", Log())
    assert folders(again)["baseline"] == before["baseline"].folder
    assert folders(again)["prefix_ft"] == before["prefix_ft"].folder
    assert "resumed at step" in (before["prefix_ft"].folder / "log.txt").read_text()
    for name in ("ablated_after", "plain_after"):
        ours, theirs = ((each.runs[name].folder / "metrics.json").read_text() for each in (again, finished))
        assert ours == theirs
    assert again.summary["comparisons"] == finished.summary["comparisons"]


def _step(checkpoint: Path) -> int:
    try:
        return int(json.loads((checkpoint / "state.json").read_text())["step"])
    except OSError:  # between two renames
        return -1

"""A run's progress and what is wrong with it, from its files alone: no lock and no process is trusted."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from latentwire.runs import watching
from latentwire.runs.store import Run
from tests.support.command_line import Command
from tests.support.run_folders import answers, evaluated, record, trained


def under_way(root: Path, *, steps: int = 100, done: int = 30, stage: str = "fit") -> Path:
    """The folder of a training in the middle of its work, as a sync from another machine leaves it: no lock."""
    run = Run.create(root, record(stage=stage, kind="finetune", configuration={"steps": steps}))
    run.write(status="running")
    lines = [
        {
            "step": at,
            "tokens": 500 * at,
            "seconds": at / 2,
            "loss": 3.0 - at / 100,
            "objectives": {"answer": 2.0, "kl": 1.0 - at / 100},
            "first_token_accuracy": at / 1000,
        }
        for at in range(1, done + 1)
    ]
    lines.insert(20, {"step": 20, "eval_loss": 2.5, "eval_first_token_accuracy": 0.125, "seconds": 10.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.folder / "diagnostics.jsonl").write_text(text + '{"step": 31, "lo')  # a line that is being written
    (run.folder / "log.txt").write_text("starting fit\nfit: 30 of 100 steps, 2.0 a second, 35 s left\n")
    return run.folder


def test_progress_speed_losses_and_time_left_are_read_from_the_files(tmp_path: Path, latentwire: Command) -> None:
    under_way(tmp_path / "runs")
    progress = watching.look(watching.pick(tmp_path / "runs", "s/fit"))
    assert (progress.done, progress.total, progress.alarm) == (30, 100, None)
    assert progress.rate == pytest.approx(2.0)
    assert progress.tokens_rate == pytest.approx(1000.0)
    assert progress.seconds_left == pytest.approx(35.0)
    status, out, _ = latentwire("runs", "watch", "s/fit", "--once")
    assert status == 0
    for words in (
        "running, 30 of 100 steps (30%), 2.00 steps a second, 1,000 tokens a second, 35 s left",
        "loss 2.7000 (answer 2.000, kl 0.700)",
        "first token right 0.030",
        "evaluation at step 20: loss 2.5000, first token right 0.125",
    ):
        assert words in out
    status, out, _ = latentwire("runs", "watch", "s/fit", "--once", "--json")
    assert json.loads(out)["eval_first_token_accuracy"] == 0.125


def test_a_run_that_writes_nothing_more_is_stalled(tmp_path: Path, latentwire: Command) -> None:
    folder = under_way(tmp_path / "runs")
    old = time.time() - 3600
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (old, old))
    status, out, _ = latentwire("runs", "watch", "s/fit", "--once")
    assert status == 1
    assert "ALARM: stalled: nothing was written for 1 h 0 min" in out
    status, out, _ = latentwire("runs", "watch", "s/fit", "--once", "--stalled-after", "120")
    assert (status, "ALARM" in out) == (0, False)


TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    step()
torch.OutOfMemoryError: CUDA out of memory.
Tried to allocate 2.00 GiB
"""


def test_a_log_that_ends_in_a_traceback_is_an_alarm_although_the_record_says_running(
    tmp_path: Path, latentwire: Command
) -> None:
    folder = under_way(tmp_path / "runs")
    with (folder / "log.txt").open("a") as log:
        log.write(TRACEBACK)
    status, out, _ = latentwire("runs", "watch", "s/fit", "--once")
    assert status == 1
    assert "ALARM: its log ends in a traceback: torch.OutOfMemoryError: CUDA out of memory." in out
    # What was resumed after it goes on.
    with (folder / "log.txt").open("a") as log:
        log.write("\nresuming fit (finetune from heron) in runs/s/fit\n")
    status, _, _ = latentwire("runs", "watch", "s/fit", "--once")
    assert status == 0


def test_a_chained_traceback_ends_in_its_last_error() -> None:
    chained = TRACEBACK + "\nDuring handling of the above exception, another exception occurred:\n\n" + TRACEBACK
    last = chained.replace("torch.OutOfMemoryError: CUDA out of memory.", "ValueError: no", 2)
    assert watching.ends_in_traceback(chained) == "torch.OutOfMemoryError: CUDA out of memory."
    assert watching.ends_in_traceback(last) == "ValueError: no"
    assert watching.ends_in_traceback("all is well\n") is None
    assert watching.ends_in_traceback(TRACEBACK + "fit: 31 of 100 steps, 2.0 a second, 30 s left\n") is None


def test_a_loss_that_is_no_number_is_an_alarm(tmp_path: Path) -> None:
    folder = under_way(tmp_path / "runs")
    with (folder / "diagnostics.jsonl").open("a") as file:
        file.write('\n{"step": 32, "loss": NaN}\n')
    assert watching.look(Run.read(folder)).alarm == "its loss is no finite number"


def test_failed_and_interrupted_runs_are_alarms_and_finished_ones_are_not(
    tmp_path: Path, latentwire: Command
) -> None:
    root = tmp_path / "runs"
    trained(root, "fit", seed=0)
    status, out, _ = latentwire("runs", "watch", "s/fit")  # ends by itself
    assert status == 0
    assert "done, 4 steps" in out
    run = Run.read(under_way(root, stage="other"))
    run.fail("RuntimeError: out of luck\nmore")
    status, out, _ = latentwire("runs", "watch", "s/other")
    assert status == 1
    assert "ALARM: failed: RuntimeError: out of luck\n" in out
    run.write(status="interrupted", error=None)
    assert latentwire("runs", "watch", "s/other", "--once")[0] == 1


def test_a_synced_study_is_watched_by_the_run_that_is_under_way(tmp_path: Path, latentwire: Command) -> None:
    root = tmp_path / "runs"
    evaluated(root, "baseline", answers([1.0, 0.0]))
    under_way(root)
    synced = tmp_path / "elsewhere"
    shutil.copytree(root / "s", synced)
    shutil.rmtree(root)
    status, out, _ = latentwire("runs", "watch", synced, "--once")
    assert status == 0
    assert out.startswith("s/fit/")
    status, _, err = latentwire("runs", "watch", "nowhere", "--once")
    assert status == 2
    assert "found no run 'nowhere'" in err


def test_answers_of_an_evaluation_are_counted_from_its_log(tmp_path: Path) -> None:
    run = Run.create(tmp_path, record())
    run.write(status="running")
    (run.folder / "log.txt").write_text(
        "starting\nbaseline: 1,200 of 6,000 answers, 12.0 a second, 6 min 40 s left\n"
    )
    progress = watching.look(Run.read(run.folder))
    assert (progress.done, progress.total, progress.unit) == (1200, 6000, "answers")
    assert progress.seconds_left == pytest.approx(400.0)


def test_watching_goes_on_until_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = under_way(tmp_path / "runs")
    looks = 0

    def later(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            (folder / "run.json").write_text("{")  # half of it is synced
        else:
            original.write(status="done")

    original = Run.read(folder)
    monkeypatch.setattr(watching.time, "sleep", later)
    seen = [progress.status for progress in watching.watch(tmp_path / "runs", "s/fit")]
    assert seen == ["running", "done"]

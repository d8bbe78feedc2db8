"""Claims about what the commands print and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire import cli
from latentwire.evaluation.outcomes import read_outcomes
from latentwire.evaluation.prompts_kept import CONTEXT, QUESTION
from latentwire.runs import log as log_module
from latentwire.runs.log import Log, Pace, duration
from latentwire.runs.store import runs
from latentwire.training.finetuning import finetune as finetuning
from tests.support.studies import small_study, written

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def latentwire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in `tmp_path`, where study.yaml is: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, small_study(gates=[]))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["latentwire", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


def test_a_study_ends_with_its_tables_and_says_where_its_files_are(latentwire: Command, tmp_path: Path) -> None:
    status, out, _ = latentwire("run", "study.yaml", "--stage", "baseline", "--stage", "ablated")
    assert status == 0
    for words in ("0 of 2 stages are done", "one_hop", "choices", "macro", "damage", "runs/small/summary.md"):
        assert words in out
    assert out.splitlines()[-1].endswith("runs/small/report.html")
    written_page = (tmp_path / "runs/small/report.html").read_text(encoding="utf-8")
    assert "ablated/text" in written_page
    for run in runs(tmp_path / "runs"):
        kept = [json.loads(line) for line in (run.folder / "prompts.jsonl").open(encoding="utf-8")]
        assert len(kept) == 24  # 8 examples of 3 tasks
        (text, block, tokens), *_ = kept[0]["arms"]["text"]["pieces"]
        assert (CONTEXT in text, QUESTION in text, block >= 0) == (True, True, run.record.stage == "ablated")
        assert tokens <= read_outcomes(run.folder / "outcomes.jsonl")[0].tokens
    for run in runs(tmp_path / "runs"):
        told = (run.folder / "log.txt").read_text()
        assert told in out  # the log holds what the screen showed
        assert str(run.folder.relative_to(tmp_path)) in told

    status, out, _ = latentwire("runs", "list")
    assert status == 0
    assert out.count("done") == 2
    status, out, _ = latentwire("runs", "show", "small/baseline")
    assert status == 0
    for words in ("identity: ", "versions: latentwire", "configuration: ", "macro", "exact_match"):
        assert words in out


def test_a_gate_that_does_not_hold_ends_with_status_1(latentwire: Command, tmp_path: Path) -> None:
    gate = {"name": "perfect", "effect": "retention", "of": "ablated/text", "task": "choices", "at_least": 100.0}
    written(tmp_path, small_study(gates=[gate]))
    status, out, err = latentwire("run", "study.yaml", "--stage", "baseline", "--stage", "ablated")
    assert status == 1
    assert "NOT HELD" in out
    assert "the gate 'perfect' did not hold" in err


def test_a_failed_stage_ends_with_status_1_and_one_sentence(
    latentwire: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(finetuning, "finetune", fail)
    status, _, err = latentwire("run", "study.yaml", "--stage", "prefix_ft")
    assert status == 1
    assert "prefix_ft failed with RuntimeError: out of memory" in err
    assert "Traceback" not in err


def test_progress_without_a_terminal_is_plain_lines_with_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now)
    log = Log()
    with log.to(tmp_path / "log.txt"), log.progress("prefix_ft", "steps") as report:
        for done in range(100, 131):  # resumed at step 100
            report(done, 200)
            now += 1.0
    expected = [
        "prefix_ft: 115 of 200 steps, 1.0 a second, 1 min 25 s left",
        "prefix_ft: 130 of 200 steps, 1.0 a second, 1 min 10 s left",
    ]
    assert capsys.readouterr().out.splitlines() == expected
    assert (tmp_path / "log.txt").read_text().splitlines() == expected


def test_times_are_told_as_people_do() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 125, 12_000)] == [
        "0 s",
        "1 min 0 s",
        "2 min 5 s",
        "3 h 20 min",
    ]
    assert Pace().left(10) == "unknown time"

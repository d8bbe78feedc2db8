"""A machine is given back after everything has arrived or the budget is spent, and this is confirmed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from latentwire.launching import targets
from latentwire.runs.store import runs
from tests.support.launches import STAGES, Rehearsal


@pytest.fixture
def down(rehearsal: Rehearsal) -> dict[str, str]:
    """Commands that note what is at home when the machine goes, and whether it is gone."""
    gone = rehearsal.folder / "gone"
    return {
        "down": f"ls {rehearsal.runs}/quick/*/*/outcomes.jsonl > {gone} 2>&1; true",
        "check_down": f"test -e {gone}",
    }


def test_a_machine_goes_only_after_everything_has_arrived(rehearsal: Rehearsal, down: dict[str, str]) -> None:
    rehearsal.transport.cut = [500_000, 900_000]
    assert rehearsal.launch(**down) == 0
    at_home = (rehearsal.folder / "gone").read_text()
    assert all(f"/{stage}/" in at_home for stage in STAGES)
    assert rehearsal.launched.record.down == "confirmed"


def test_a_machine_that_does_not_go_raises_an_alarm(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "CONFIRMATIONS", 2)
    assert rehearsal.launch(down="true") == 1, "it still answers"
    assert "NOT confirmed gone" in rehearsal.alarms()
    assert rehearsal.launched.record.down == "failed"


def test_an_instance_that_never_answers_is_given_back(rehearsal: Rehearsal, down: dict[str, str]) -> None:
    rehearsal.transport.dead = True
    assert rehearsal.launch(patience_minutes=0.2 / 60, **down) == 1
    assert "has not answered" in rehearsal.alarms()
    assert rehearsal.launched.record.down == "confirmed"


def test_an_instance_that_is_silent_after_the_start_is_kept_until_the_budget_is_spent(
    rehearsal: Rehearsal, down: dict[str, str]
) -> None:
    rehearsal.fault("wait")
    following = rehearsal.following(patience_minutes=0.2 / 60, hours=1, **down)
    following.go(detach=True)
    following.launch.write(created=time.time() - 3600 + 3)
    rehearsal.transport.dead = True
    assert following.go() == 1
    assert "may still cost money" in rehearsal.alarms()
    assert "out of budget" in (rehearsal.launched.record.outcome or "")
    assert rehearsal.launched.record.down == "confirmed"
    rehearsal.transport.dead = False


@pytest.mark.slow
def test_a_spent_budget_ends_the_run_and_brings_home_what_can_be_resumed(
    rehearsal: Rehearsal, down: dict[str, str]
) -> None:
    rehearsal.fault("wait")
    assert rehearsal.launch(hours=8 / 3600, restart=5, **down) == 1
    assert "out of budget" in (rehearsal.launched.record.outcome or "")
    found = {run.record.stage: run for run in runs(rehearsal.runs)}
    assert found["first"].status == "done"
    assert found["second"].status == "interrupted", "it can be resumed here"
    assert (found["second"].folder / "metrics.json").is_file()
    assert rehearsal.launched.record.down == "confirmed"
    assert rehearsal.starts() == 1


@pytest.mark.slow
def test_a_study_goes_on_on_another_machine_where_the_first_one_left_it(
    rehearsal: Rehearsal, down: dict[str, str]
) -> None:
    rehearsal.fault("wait")
    assert rehearsal.launch(hours=8 / 3600, **down) == 1
    before = {run.record.stage: run for run in runs(rehearsal.runs)}
    assert rehearsal.launch(folder=str(rehearsal.far / "another")) == 0
    after = {run.record.stage: run for run in runs(rehearsal.runs)}
    assert sorted(after) == sorted(STAGES)
    assert {run.status for run in after.values()} == {"done"}
    assert after["first"].record == before["first"].record, "what was done is not done again"
    assert after["second"].folder == before["second"].folder
    assert len(after["second"].record.times) == 2, "what was cut short went on"


@pytest.mark.slow
def test_a_secret_reaches_the_run_and_no_file(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_" + os.urandom(12).hex()
    monkeypatch.setenv("HF_TOKEN", secret)
    rehearsal.fault("kill")
    assert rehearsal.launch(forwarded=("HF_TOKEN",), restart=1) == 0
    log = (rehearsal.far / "place" / "log.txt").read_text()
    assert "the token is ***" in log, "the run had it, and printed it"
    files = [path for path in rehearsal.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    printed = capfd.readouterr()
    assert secret not in printed.out + printed.err


def test_a_study_that_is_stopped_comes_home_unfinished(rehearsal: Rehearsal) -> None:
    rehearsal.fault("wait")
    following = rehearsal.following()
    following.go(detach=True)
    while not list(Path(rehearsal.far).glob("place/runs/quick/second/*/metrics.json")):
        pass
    again = rehearsal.following()
    again.stopping = True
    assert again.go() == 1
    assert {run.record.stage: run.status for run in runs(rehearsal.runs)} == {
        "first": "done",
        "second": "interrupted",
    }

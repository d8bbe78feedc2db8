"""A run folder that was changed or damaged: one sentence, no false number, and always a way out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire import cli
from latentwire.errors import UserError
from latentwire.runs.log import Log
from latentwire.runs.store import Run, find, scan
from latentwire.studies import figures, loading, runner
from latentwire.studies.runner import Carried
from tests.support.studies import small_study, written

CHANGED = "found it changed since the run ended"
Again = Callable[..., Carried]


@pytest.fixture
def copied(finished: Carried, tmp_path: Path) -> Path:
    """The runs of the finished small study, to be damaged."""
    shutil.copytree(finished.folder.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


@pytest.fixture
def again(copied: Path, tmp_path: Path) -> Again:
    study = loading.load(str(written(tmp_path, small_study())))

    def call(**options: Any) -> Carried:
        return runner.run(study, copied, Log(), **options)

    return call


def only(root: Path, stage: str) -> Run:
    (run,) = scan(root, "small", stage)[0]
    return run


def flip(path: Path) -> None:
    """Turn every right answer into a wrong one and the other way round."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["metrics"] = {name: 1.0 - value for name, value in line["metrics"].items()}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["outcomes.jsonl", "metrics.json"])
def test_forged_results_are_never_summarised(name: str, again: Again, copied: Path) -> None:
    run = only(copied, "ablated")
    path = run.folder / name
    if name == "outcomes.jsonl":
        flip(path)
    else:
        path.write_text(path.read_text().replace("0.", "1."))
    before = (copied / "small" / "summary.json").read_bytes()
    for fresh in ((), ("summary.json",)):  # also where the summary has to be made again
        for file in fresh:
            (copied / "small" / file).unlink()
        with pytest.raises(UserError, match=rf"{name}: {CHANGED}.*--stage ablated --fresh\.$"):
            again()
    assert not (copied / "small" / "summary.json").exists()
    (copied / "small" / "summary.json").write_bytes(before)
    with pytest.raises(UserError, match=CHANGED):
        figures.draw(copied / "small", copied / "small" / "curves.svg")


def test_a_forged_run_is_carried_out_again_when_asked_for(again: Again, copied: Path, finished: Carried) -> None:
    flip(only(copied, "ablated").folder / "outcomes.jsonl")
    carried = again(stages=["ablated"], fresh=True)
    assert carried.summary["comparisons"] == finished.summary["comparisons"]
    assert again().runs["ablated"].folder == carried.runs["ablated"].folder


def test_several_forged_runs_are_named_in_one_command(again: Again, copied: Path) -> None:
    for stage in ("baseline", "ablated"):
        flip(only(copied, stage).folder / "outcomes.jsonl")
    with pytest.raises(UserError, match=r"2 changed stages .* --stage baseline --stage ablated --fresh"):
        again()
    assert set(again(stages=["baseline", "ablated"], fresh=True).runs) >= {"baseline", "ablated"}


def test_a_file_that_a_run_did_not_write_is_no_result_of_it(again: Again, copied: Path) -> None:
    (only(copied, "prefix_ft").folder / "metrics.json").write_text('{"text": {}}')
    with pytest.raises(UserError, match=rf"metrics\.json: {CHANGED}"):
        again()


def test_numbers_changed_in_the_summary_itself_are_not_drawn(copied: Path) -> None:
    path = copied / "small" / "summary.json"
    summary = json.loads(path.read_text())
    summary["stages"]["ablated"]["metrics"]["text"]["one_hop"]["f1"]["value"] = 0.999
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match="found other numbers for ablated in"):
        figures.draw(copied / "small", copied / "small" / "curves.svg")


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{", b'{"run": 1}', b"\xff\xfe", b"null"])
def test_a_broken_record_blocks_nothing(
    content: bytes, again: Again, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = only(copied, "ablated").folder
    (broken / "run.json").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["latentwire", "runs", "list", "--runs", str(copied)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    listed = capsys.readouterr().out
    assert "unreadable" in listed
    assert "small/baseline" in listed
    assert find(copied, "small/baseline").status == "done"
    carried = again(stages=["ablated"])
    assert carried.runs["ablated"].folder != broken
    assert "this run does not count" in capsys.readouterr().out
    assert again(stages=["ablated"], fresh=True).runs["ablated"].status == "done"
    with pytest.raises(UserError, match=r"run\.json"):
        find(copied, str(broken))


def test_the_newest_run_that_can_be_read_is_shown(again: Again, copied: Path) -> None:
    older = only(copied, "baseline").folder
    newer = again(stages=["baseline"], fresh=True).runs["baseline"].folder
    assert find(copied, "small/baseline").folder == max(older, newer)
    (max(older, newer) / "run.json").write_text("{")
    assert find(copied, "small/baseline").folder == min(older, newer)

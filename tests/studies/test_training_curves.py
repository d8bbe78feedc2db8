"""How the trainings of a study went is drawn beside its curves, and of kept diagnostics alone."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from latentwire import cli
from latentwire.errors import UserError
from latentwire.studies import figures, training_curves
from latentwire.studies.runner import Carried

FILE = training_curves.FILE
LINES = [
    {"step": 0, "eval_loss": 3.0, "eval_first_token_accuracy": 0.25},
    {"step": 1, "loss": 5.0, "first_token_accuracy": None},
    {"step": 2, "loss": 4.0, "first_token_accuracy": 0.5},
    {"step": 2, "eval_loss": 2.0, "eval_first_token_accuracy": 0.5},
]


def kept(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_a_study_without_latents_draws_its_training(
    finished: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        sys, "argv", ["latentwire", "report", str(finished.folder), "-o", str(tmp_path / "went.svg")]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    drawn = tmp_path / "went-training.svg"
    assert capsys.readouterr().out.split() == [str(drawn)]
    assert [path.name for path in tmp_path.iterdir()] == [drawn.name]
    shown = texts(drawn)
    assert {"prefix_ft", "small: step", "evaluation loss; thin: training loss"} <= set(shown)
    assert "baseline" not in shown
    first = drawn.read_bytes()
    figures.draw(finished.folder, tmp_path / "went.svg")
    assert drawn.read_bytes() == first


def test_a_study_that_has_another_name_now_has_its_trainings(finished: Carried, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "renamed", ignore=shutil.ignore_patterns("checkpoints"))
    assert training_curves.trainings(tmp_path / "renamed", finished.summary) == {
        "prefix_ft": tmp_path / "renamed" / finished.runs["prefix_ft"].folder.relative_to(finished.folder) / FILE
    }


def test_a_study_without_trainings_draws_none(finished: Carried, tmp_path: Path) -> None:
    stages = {name: each for name, each in finished.summary["stages"].items() if name != "prefix_ft"}
    (tmp_path / "summary.json").write_text(json.dumps({**finished.summary, "stages": stages}))
    with pytest.raises(UserError, match="no evaluation over latents and no training"):
        figures.draw(tmp_path, tmp_path / "curves.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_kept_diagnostics_are_drawn_by_label(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    whole = [json.dumps(line) for line in LINES]
    one, other = kept(tmp_path / "one.jsonl", whole), kept(tmp_path / "other.jsonl", [*whole, '{"step": 3, "lo'])
    training_curves.draw({"ratio 4": one, "ratio 8": other}, tmp_path / "kept.svg", "sizes")
    assert {"ratio 4", "ratio 8", "sizes: step"} <= set(texts(tmp_path / "kept.svg"))
    found = training_curves.lines_of_training(one)
    assert training_curves._curve(found, "eval_loss") == ([0, 2], [3.0, 2.0])
    assert training_curves._curve(found, "loss") == ([1, 2], [5.0, 4.0])
    assert training_curves.lines_of_training(other) == found


def test_a_training_that_diverged_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ends = [*LINES, {"step": 4, "eval_loss": float("inf"), "eval_first_token_accuracy": 0.0}]
    away = kept(tmp_path / "away.jsonl", [json.dumps(line) for line in ends])
    training_curves.draw({"away": away}, tmp_path / "away.svg")
    assert "away" in texts(tmp_path / "away.svg")


def test_what_is_no_diagnostics_is_told_in_one_sentence(tmp_path: Path) -> None:
    broken = kept(tmp_path / "broken.jsonl", ["[]", json.dumps(LINES[0])])
    for path, expected in (
        (broken, r"broken\.jsonl, line 1: found no step, expected the diagnostics\.jsonl of a training"),
        (tmp_path / "none", r"none cannot be read, expected the diagnostics\.jsonl"),
    ):
        with pytest.raises(UserError, match=expected):
            training_curves.draw({"x": path}, tmp_path / "x.svg")
    with pytest.raises(UserError, match=r"x\.txt cannot be written"):
        training_curves.draw({}, tmp_path / "x.txt")


def test_without_matplotlib_one_sentence_says_what_to_install(
    finished: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"found no matplotlib, .* pip install latentwire\[plots\]"):
        figures.draw(finished.folder, tmp_path / "went.svg")
    assert not list(tmp_path.iterdir())

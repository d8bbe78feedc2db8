"""An evaluation on the command line leaves a run that explains itself, as one of a study does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from latentwire.evaluation.outcomes import read_outcomes
from latentwire.files import write_atomically
from latentwire.runs.store import Run
from tests.support.models import tiny_lm

ROWS = [
    {"id": str(at), "context": f"Ada lives in {place}.", "question": "Where does Ada live?", "answers": [place]}
    for at, place in enumerate(("the old town", "a red house", "the river"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_lm(max_position_embeddings=256).save(folder)
    return folder


def evaluated(model: Path, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    from latentwire import cli

    data = folder / "mine.jsonl"
    write_atomically(data, "".join(json.dumps(row) + "\n" for row in ROWS))
    asked = ["eval", "--model", model, "--task", "squad", "--data", data, "--wire", "text", "-o", out, *words]
    monkeypatch.setattr(sys, "argv", ["latentwire", *map(str, asked)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_an_evaluation_leaves_its_record_outcomes_metrics_and_samples(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluated(model, tmp_path, out, monkeypatch, "--wire", "text:deranged") == 0
    printed = capsys.readouterr().out
    assert "f1 [95 %]" in printed
    assert "3 examples get the context of a question that wants the same type of answer" in printed
    run = Run.read(out)
    assert (run.status, run.record.kind) == ("done", "evaluate")
    assert run.record.configuration["arms"] == ["text", "text:deranged"]
    assert set(run.record.inputs) == {f"model {model}", "data"}
    assert run.record.versions["latentwire"]
    outcomes = read_outcomes(out / "outcomes.jsonl")
    assert [(o.arm, o.id) for o in outcomes] == [
        (arm, row["id"]) for arm in ("text", "text:deranged") for row in ROWS
    ]
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"exact_match", "f1", "nll"} <= metrics["text"]["squad"].keys()
    samples = [json.loads(line) for line in (out / "samples" / "squad.jsonl").read_text().splitlines()]
    assert [sample["id"] for sample in samples] == ["0", "1", "2"]
    assert samples[0]["predictions"] == {o.arm: o.prediction for o in outcomes if o.id == "0"}
    assert set(run.record.artifacts) == {"outcomes.jsonl", "metrics.json", "report.json", "samples/squad.jsonl"}
    assert run.changed_artifacts("") == []
    report = json.loads((out / "report.json").read_text())
    assert report["comparisons"][0]["a"] == "text:deranged"


def test_a_folder_that_holds_something_is_refused_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert evaluated(model, tmp_path, out, monkeypatch) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_an_evaluation_that_fails_says_so_in_its_record(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("latentwire.evaluation.several_readers.evaluate_readers", broken)
    out = tmp_path / "out"
    assert evaluated(model, tmp_path, out, monkeypatch) == 1
    run = Run.read(out)
    assert (run.status, run.record.error) == ("failed", "out of luck")
    assert not (out / "outcomes.jsonl").exists()

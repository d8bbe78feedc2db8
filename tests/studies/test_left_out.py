"""Examples that an arm's variant cannot change are told, and counted as done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from latentwire.runs.log import Log
from latentwire.studies import loading, runner, summary_tables
from latentwire.studies.runner import Carried
from latentwire.studies.stages import evaluate as evaluate_stage
from tests.support.studies import model_folder, written

PLACES = ["the old town", "a red house", "the river", "a small shop"]


def lines() -> list[dict[str, Any]]:
    """Four passages that state the answer and one that words it otherwise."""
    stated = [
        {
            "id": str(at),
            "context": f"Ada lives in {place}.",
            "question": "Where does Ada live?",
            "answers": [place],
        }
        for at, place in enumerate(PLACES)
    ]
    return [*stated, {**stated[0], "id": "4", "context": "Ada lives in a town that is old."}]


class Watched(Log):
    """A log that keeps every report of progress."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[int, int]] = []

    @contextmanager
    def progress(self, what: str, unit: str) -> Iterator[Any]:
        yield lambda done, total: self.reports.append((done, total))


def carry(folder: Path, log: Log) -> Carried:
    tasks = []
    for name in ("first", "second"):
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines())))
        tasks.append({"name": name, "kind": "jsonl", "data": str(file)})
    arms = {"text": "text", "foil": "text:counterfactual"}
    stages = {"reading": {"kind": "evaluate", "arms": arms}}
    study = {"name": "left", "model": str(model_folder()), "tasks": tasks, "stages": stages}
    return runner.run(loading.load(str(written(folder, study))), folder / "runs", log)


def test_what_an_arm_was_not_asked_and_where_answers_stick_stand_in_the_summary(tmp_path: Path) -> None:
    log = Watched()
    carried = carry(tmp_path, log)
    assert log.reports[-1] == (20, 20)
    assert carried.summary["derived"]["evaluations"]["reading"]["skipped"] == {"foil": {"first": 1, "second": 1}}
    text = (carried.folder / "summary.md").read_text()
    assert "cannot change these examples: 1 of first in reading/foil, 1 of second in reading/foil." in text
    sticks = carried.summary["stages"]["reading"]["metrics"]["foil"]["first"]["sticks"]
    assert f"first over reading/foil sticks to the old answer in {sticks['value']:.3f} [" in text
    assert "over reading/text sticks" not in text
    f1 = carried.summary["stages"]["reading"]["metrics"]["foil"]["first"]["f1"]
    assert "## F1" in text
    assert f"{f1['value']:.3f} [{f1['low']:.3f}, {f1['high']:.3f}]" in text.partition("## F1")[2]
    carried.summary["derived"]["evaluations"]["reading"]["skipped"] = {}
    assert "Left out" not in summary_tables.markdown(carried.plan.study, carried.runs, carried.summary)


def test_an_earlier_attempts_examples_count_as_they_did_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(lm: Any, tasks: Any, *rest: Any, **options: Any) -> Any:
        if tasks[0].name == "second":
            raise KeyboardInterrupt
        return evaluate(lm, tasks, *rest, **options)

    evaluate = evaluate_stage.evaluate_readers
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_stage, "evaluate_readers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            carry(tmp_path, Watched())
    log = Watched()
    carried = carry(tmp_path, log)
    assert (log.reports[0], log.reports[-1]) == ((11, 20), (20, 20))
    results = carried.runs["reading"].record.results
    assert results is not None
    assert results["skipped"] == {"foil": {"first": 1, "second": 1}}

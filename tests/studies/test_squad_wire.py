"""The template `squad-wire`: two readers of different families, one wire, from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from tests.support.wire_studies import HERON, WREN

PEOPLE = ("Ada", "Bob", "Cem", "Dora", "Eve", "Finn")
PLACES = ("the old town", "a red house", "the river", "a small shop", "the north gate")


def passages(path: Path, count: int, start: int = 0) -> Path:
    """A SQuAD v1.1 file with two questions on each passage."""
    articles = []
    for n in range(start, start + count):
        one, two = PEOPLE[n % 6], PEOPLE[(n + 1) % 6]
        here, there = PLACES[n % 5], PLACES[(n + 2) % 5]
        context = f"In year {1900 + n} {one} lived in {here}. At that time {two} worked at {there}."
        asked = ((f"Where did {one} live?", here), (f"Where did {two} work?", there))
        qas = [
            {
                "id": f"{n}-{at}",
                "question": question,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for at, (question, answer) in enumerate(asked)
        ]
        articles.append({"title": f"year {n}", "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> runner.Carried:
    folder = tmp_path_factory.mktemp("squad")
    train, test = passages(folder / "train.json", 60), passages(folder / "test.json", 8, start=100)
    changes = [f"models.a={HERON}", f"models.b={WREN}", f"files.train={train}", f"files.test={test}", "limit=12"]
    return runner.run(loading.load("squad-wire", changes, "smoke"), folder / "runs", Log())


@pytest.mark.slow
def test_the_smoke_preset_runs_from_files_to_its_tables(done: runner.Carried) -> None:
    study, summary = done.plan.study, done.summary
    assert {stage["status"] for stage in summary["stages"].values()} == {"done"}
    for name in ("A", "B", "C", "alone", "constant"):
        results = done.runs[name].record.results
        assert results is not None
        assert results["steps"] == 20  # the preset's
    arms = summary["stages"]["wires"]["metrics"]
    assert {"A_a", "A_b", "B_b", "C_b", "joint(A_a + A_b)", "union(A_a + A_b)", "joint(C_a + C_b)"} <= set(arms)
    assert list(arms["A_b"]["squad"])[:2] == ["exact_match", "f1"]
    assert {each["name"] for each in summary["comparisons"]} == {each.name for each in study.comparisons}
    assert "wires/A_a + wires/A_b" in summary["derived"]["agreement"]
    tables = (done.folder / "summary.md").read_text()
    for words in ("## Agreement", "joint(A_a + A_b)", "joint answer against a"):
        assert words in tables


@pytest.mark.slow
def test_a_second_reader_leaves_the_first_ones_wire_as_it_was(done: runner.Carried) -> None:
    """Stage C trains the new adapter alone, so the first reader answers as it did."""

    def said(arm: str) -> list[Any]:
        lines = (done.runs["wires"].folder / "outcomes.jsonl").read_text().splitlines()
        return [each["prediction"] for each in map(json.loads, lines) if each["arm"] == arm]

    assert said("C_a") == said("alone_a")


def test_models_files_and_their_kind_are_each_changed_in_one_place() -> None:
    changes = ["models.a=x", "models.b=y", "files.kind=jsonl", "files.train=t.jsonl", "files.test=v.jsonl"]
    study = loading.load("squad-wire", changes)
    assert study.models() == ["x", "y"]
    (task,) = study.tasks
    assert not isinstance(task, str)
    assert (task.kind, str(task.data)) == ("jsonl", "v.jsonl")
    data = [stage.data for stage in study.stages.values() if stage.kind == "wire"]
    assert {(each.task, str(each.data)) for each in data} == {("jsonl", "t.jsonl")}
    assert set(study.stages["A"].wire.adapters) == {"x", "y"}


def test_a_hero_trains_for_longer_than_the_template() -> None:
    plain, hero = (loading.load("squad-wire", (), preset).stages["A"] for preset in (None, "hero"))
    assert hero.steps > plain.steps

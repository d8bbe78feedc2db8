"""A preserved run explains itself, reproduces, and says what nobody has filled in yet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from latentwire.runs import manifest
from latentwire.runs.manifest import Manifest
from latentwire.runs.run_tables import in_words
from latentwire.runs.store import Run, StudyFile, scan
from latentwire.runs.verification import verify_run
from tests.support.command_line import Command
from tests.support.run_folders import answers, drawn_answers, evaluated, parent, trained

WORDS = {
    "--why": "First end-to-end check that the bridge trains 2,000 steps.",
    "--wrong": "The soft tokens repeat the question | and *nothing* else.",
    "--verdict": "Not publishable: below the target alone.",
    "--next": "Ask with soft tokens only.",
}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    root = tmp_path / "runs"
    command = ("CUDA_VISIBLE_DEVICES=0", "latentwire", "run", "my study.yaml", "--set", "limit=40")
    file = StudyFile(path="my study.yaml", text="name: s\nmodel: embedded:heron\n", changes=("limit=40",))
    fit = trained(root, "fit", seed=7)
    results = {
        **(fit.record.results or {}),
        "best_step": 3,
        "peak_accuracy": 0.68,
        "peak_step": 2,
        "final_accuracy": 0.645,
        "text": {"exact_match": 0.77, "f1": 0.8},
    }
    fit.write(results=results)
    outcomes = [*drawn_answers(0.6, 40, 0), *answers([0.0] * 40, "none")]
    outcomes[:8] = [
        replace(outcome, error="unreadable", metrics={"exact_match": 0.0, "f1": 0.0}) for outcome in outcomes[:8]
    ]
    after = evaluated(root, "after", outcomes, parents=parent(fit), command=command, study_file=file)
    before = evaluated(root, "before", [*answers([1.0] * 40, "text"), *answers([0.5] * 40, "text,mask=prefix")])
    return {"fit": fit, "after": after, "before": before}


def preserved(latentwire: Command, run: Run, *words: str) -> str:
    status, out, err = latentwire("runs", "preserve", run.record.run, *words)
    assert status == 0, err
    return out


def test_a_preserved_run_has_its_files_its_parents_and_every_field(
    runs: dict[str, Run], latentwire: Command, tmp_path: Path
) -> None:
    out = preserved(latentwire, runs["after"], *(word for pair in WORDS.items() for word in pair))
    assert "empty" not in out
    copies, unreadable = scan(tmp_path / "preserved")
    assert {run.record.stage for run in copies} == {"after", "fit"}
    assert unreadable == []
    for run in copies:
        assert run.record == Run.read(runs[run.record.stage].folder).record
        assert verify_run(run, tmp_path / "preserved") == []
        assert not (run.folder / ".lock").exists()

    entry = Manifest.read(tmp_path / "preserved").entries[runs["after"].record.run]
    assert entry.empty == []
    told = entry.fields
    # What the earlier study's five entries held, field by field.
    assert told[manifest.WHY] == WORDS["--why"]
    assert told[manifest.COMMAND] == "`CUDA_VISIBLE_DEVICES=0 latentwire run 'my study.yaml' --set limit=40`"
    assert "`limit=40`" in told[manifest.STUDY]
    assert f"{runs['after'].record.machine['cores']} cores" in told[manifest.HARDWARE]
    metrics = told[manifest.METRICS]
    number = json.loads((runs["after"].folder / "metrics.json").read_text())["text"]["one_hop"]["exact_match"]
    for words in (
        "peak 0.680 at step 2, final 0.645, degradation 0.035",
        "baseline, the untrained model reading the text: exact_match 0.770",
        f"arm `text` (baseline): one_hop exact_match {in_words(number)}",
        "arm `none` (baseline): one_hop exact_match 0.000",
        "invalid answers 0.200 [",
    ):
        assert words in metrics
    assert f"{runs['before'].record.run}, arm `text` (baseline): one_hop exact_match 1.000" in metrics
    assert "arm `text,mask=prefix`" not in metrics, "no baseline, and of another stage"
    assert "**Key metrics**:\n  - " in (tmp_path / "preserved" / "README.md").read_text(), "a list of its own"
    assert told[manifest.WRONG] == WORDS["--wrong"]
    assert told[manifest.VERDICT] == WORDS["--verdict"]
    assert told[manifest.NEXT] == WORDS["--next"]
    assert "`outcomes.jsonl` (SHA-256" in told[manifest.ARTIFACTS]
    assert "log: `log.txt`" in told[manifest.ARTIFACTS]
    assert f"starts from `{runs['fit'].record.run}`, preserved too" in told[manifest.LINEAGE]
    assert set(told) == set(manifest.FIELDS)

    status, out, _ = latentwire("runs", "verify")
    assert (status, out) == (0, "5 runs checked, 0 with something wrong\n")
    status, out, _ = latentwire("runs", "list", "--runs", "preserved", "--metric", "exact_match>0.1")
    assert out.count("done") == 1


def test_verify_says_what_nobody_has_filled_in(runs: dict[str, Run], latentwire: Command, tmp_path: Path) -> None:
    out = preserved(latentwire, runs["after"], "--why", "To see.")
    assert "empty: How close to publishable (--verdict)" in out
    status, out, _ = latentwire("runs", "verify")
    assert status == 1
    for name in (manifest.WRONG, manifest.VERDICT, manifest.NEXT):
        assert f"{name!r} is empty" in out
    assert manifest.WHY not in out

    # By an option, also where the run itself is gone, and by hand.
    (tmp_path / "runs").rename(tmp_path / "away")
    preserved(latentwire, runs["after"], "--verdict", "No.", "--next", "All.")
    readme = tmp_path / "preserved" / "README.md"
    lines = readme.read_text()
    assert "To see." in lines
    readme.write_text(lines.replace(f"**{manifest.WRONG}**: (empty)", f"**{manifest.WRONG}**: two\n  lines of it"))
    status, out, _ = latentwire("runs", "verify")
    assert (status, out) == (0, "2 runs checked, 0 with something wrong\n")


def test_what_people_write_into_the_manifest_stays(
    runs: dict[str, Run], latentwire: Command, tmp_path: Path
) -> None:
    preserved(latentwire, runs["fit"], "--why", "Old words.")
    readme = tmp_path / "preserved" / "README.md"
    text = readme.read_text().replace("# Preserved runs", "# Our runs")
    readme.write_text(text.rstrip() + "\n\nA remark of mine.\n\n- a list of mine\n")
    preserved(latentwire, runs["after"])
    preserved(latentwire, runs["fit"], "--why", "New words.")
    text = readme.read_text()
    for words in ("# Our runs", "A remark of mine.\n\n- a list of mine\n", "New words."):
        assert words in text
    assert "Old words." not in text
    assert text.count("\n## `") == 2
    once = readme.read_text()
    Manifest.read(readme.parent).write(readme.parent)
    assert readme.read_text() == once


def test_a_changed_byte_of_a_preserved_run_is_found(
    runs: dict[str, Run], latentwire: Command, tmp_path: Path
) -> None:
    preserved(latentwire, runs["after"], *(word for pair in WORDS.items() for word in pair))
    path = tmp_path / "preserved" / runs["fit"].record.run / "checkpoints" / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    status, out, _ = latentwire("runs", "verify")
    assert status == 1
    assert out.count("FAIL") == 1
    assert "checkpoints/best/model.safetensors: has changed" in out


def test_a_changed_run_and_a_missing_parent_are_not_preserved(
    runs: dict[str, Run], latentwire: Command, tmp_path: Path
) -> None:
    with (runs["after"].folder / "outcomes.jsonl").open("a") as file:
        file.write("\n")
    status, _, err = latentwire("runs", "preserve", "s/after")
    assert status == 2
    assert "outcomes.jsonl: has changed since the run ended" in err
    runs["fit"].folder.rename(tmp_path / "gone")
    status, _, err = latentwire("runs", "preserve", "s/after")
    assert status == 2
    assert "without it the run cannot be reproduced" in err
    assert not (tmp_path / "preserved").exists()


def test_a_folder_with_another_readme_is_left_alone(
    runs: dict[str, Run], latentwire: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("# Mine\n")
    status, _, err = latentwire("runs", "preserve", "s/fit", "--to", "mine")
    assert status == 2
    assert "is no manifest of preserved runs" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]


def test_a_training_is_preserved_with_the_numbers_of_its_evaluations(
    runs: dict[str, Run], latentwire: Command, tmp_path: Path
) -> None:
    preserved(latentwire, runs["fit"], "--cite", "diagnostics.jsonl")
    told = Manifest.read(tmp_path / "preserved").entries[runs["fit"].record.run].fields
    assert f"{runs['after'].record.run}, arm `text`" in told[manifest.METRICS]
    assert told[manifest.ARTIFACTS].lstrip().startswith("- `diagnostics.jsonl` (SHA-256")
    status, _, err = latentwire("runs", "preserve", "s/fit", "--cite", "nothing.txt")
    assert status == 2
    assert "--cite: found no file 'nothing.txt'" in err

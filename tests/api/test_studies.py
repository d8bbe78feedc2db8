"""Studies are carried out from Python, and runs are opened again."""

import shutil

import pytest

import latentwire as lw
from latentwire.evaluation.outcomes import read_outcomes
from latentwire.studies import loading
from tests.support.studies import MASKED, PLAIN, small_study, written

STUDY = {
    "tasks": ["one_hop"],
    "stages": {
        "baseline": {"kind": "evaluate", "arms": PLAIN},
        "prefix_ft": {"kind": "finetune", "wire": "text,mask=prefix"},
        "after": {"kind": "evaluate", "start_from": "prefix_ft", "arms": MASKED},
    },
    "effects": None,
    "comparisons": [{"name": "gain", "task": "one_hop", "a": "after/text", "b": "baseline/text"}],
    "gates": [],
}


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    path = written(folder, small_study(**STUDY))
    return lw.run_study(path, {"limit": 4, "finetuning.steps": 2}, runs=folder / "runs")


@pytest.mark.slow
def test_a_study_returns_its_summary_and_its_runs(carried):
    assert set(carried.runs) == {"baseline", "prefix_ft", "after"}
    assert {run.status for run in carried.runs.values()} == {"done"}
    assert [each["name"] for each in carried.summary["comparisons"]] == ["gain"]
    assert carried.failed_gates == []
    assert "gain" in str(carried)


def test_changes_as_a_mapping_are_those_of_set(carried):
    assert carried.study.limit == 4
    assert carried.runs["prefix_ft"].record.configuration["steps"] == 2


def test_an_evaluation_opens_with_its_outcomes_and_statistics(carried):
    root = carried.folder.parent
    run = lw.open_run("small/baseline", runs=root)
    assert run.folder == carried.runs["baseline"].folder
    assert run.results.outcomes == read_outcomes(run.folder / "outcomes.jsonl")
    number = carried.summary["stages"]["baseline"]["metrics"]["text"]["one_hop"]["exact_match"]
    assert run.results.estimate("text").value == number["value"]
    assert "type_floor" in str(run.results)
    assert "baseline" in str(run)


def test_a_training_opens_with_its_diagnostics_and_checkpoints(carried):
    run = lw.open_run(carried.runs["prefix_ft"].folder)
    assert run.results is None
    assert [line["step"] for line in run.diagnostics if "loss" in line]
    assert (run.checkpoint("best") / "model.safetensors").is_file()
    assert run.checkpoint("none") is None


def test_a_study_that_is_loaded_already_goes_on_where_it_stopped(carried):
    study = loading.load(str(carried.folder.parent.parent / "study.yaml"), ["limit=4", "finetuning.steps=2"])
    again = lw.run_study(study, runs=carried.folder.parent)
    assert {name: run.folder for name, run in again.runs.items()} == {
        name: run.folder for name, run in carried.runs.items()
    }


def test_changed_outcomes_are_not_read(carried, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(carried.runs["baseline"].folder, folder)
    path = folder / "outcomes.jsonl"
    path.write_text(path.read_text().replace('"exact_match": 0.0', '"exact_match": 1.0', 1))
    with pytest.raises(lw.UserError, match="found it changed since the run ended"):
        _ = lw.open_run(folder).results


def test_a_run_that_is_not_there_is_told(tmp_path):
    with pytest.raises(lw.UserError, match="found no run 'nowhere'"):
        lw.open_run("nowhere", runs=tmp_path)

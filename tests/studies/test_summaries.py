"""Claims about what a study leaves behind: `summary.json`, its tables, and a record in every run."""

from __future__ import annotations

import copy
import json

import pytest

from latentwire.evaluation.eval_report import of_questions
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.runs.store import Run
from latentwire.studies import loading, plan, summary_tables
from latentwire.studies.runner import Carried
from latentwire.studies.spec import Study
from latentwire.studies.stages import training_stage
from latentwire.studies.study_summary import build
from latentwire.training.trainee import Trained
from tests.support.studies import model_folder, small_study


@pytest.mark.slow
def test_the_summary_has_the_shape_of_the_contract(finished: Carried) -> None:
    found = json.loads((finished.folder / "summary.json").read_text())
    assert list(found) == ["study", "stages", "comparisons", "derived"]
    assert list(found["stages"]) == ["baseline", "ablated", "prefix_ft", "ablated_after", "plain_after"]
    for name, stage in found["stages"].items():
        assert list(stage) == ["run", "status", "metrics"]
        assert stage["status"] == "done"
        assert Run.read(finished.folder.parent / stage["run"]).record.stage == name
    assert found["stages"]["prefix_ft"]["metrics"] == {}
    metrics = found["stages"]["baseline"]["metrics"]
    assert list(metrics) == ["text", "none"]
    assert list(metrics["text"]) == ["one_hop", "choices/home", "choices/job", "choices", "macro"]
    assert list(metrics["text"]["one_hop"])[:2] == ["exact_match", "f1"]
    assert list(metrics["text"]["choices"])[:2] == ["acc", "acc_norm"]
    assert list(metrics["text"]["macro"]["primary"]) == ["value", "low", "high", "n"]
    assert metrics["text"]["one_hop"]["exact_match"]["n"] == 8
    (damage, _) = found["comparisons"]
    assert list(damage) == ["name", "task", "metric", "a", "b", "difference", "low", "high", "p", "resolved"]
    assert (damage["task"], damage["metric"]) == ("choices", "acc")
    assert found["derived"]["comparisons"]["damage"]["primary"]
    assert found["derived"]["comparisons"]["later"]["single_seed"]
    assert {each["task"] for each in found["derived"]["effects"]} == set(metrics["text"])
    assert found["derived"]["finetunings"]["prefix_ft"]["steps"] == 8


def test_every_run_explains_itself(finished: Carried) -> None:
    weights = finished.runs["prefix_ft"]
    for name, run in finished.runs.items():
        record = run.record
        assert (record.status, record.stage, record.study) == ("done", name, "small")
        assert record.results is not None
        assert record.artifacts
        assert (run.folder / "log.txt").read_text()
    assert finished.runs["baseline"].record.inputs["model"].path == str(model_folder())
    assert finished.runs["plain_after"].record.parents["prefix_ft"].run == weights.record.run
    assert "checkpoints/best/model.safetensors" in weights.record.artifacts
    assert {"outcomes.jsonl", "metrics.json"} <= set(finished.runs["baseline"].record.artifacts)
    assert LM.load(weights.folder / "checkpoints" / "best").max_positions == 1024


def test_arms_are_named_as_the_study_names_them(finished: Carried) -> None:
    lines = (finished.runs["ablated"].folder / "outcomes.jsonl").read_text().splitlines()
    assert {json.loads(line)["arm"] for line in lines} == {"text", "none"}
    assert len(lines) == 2 * 3 * 8


def test_the_written_summary_names_its_limits(finished: Carried) -> None:
    text = (finished.folder / "summary.md").read_text()
    for words in ("single-seed", "exploratory", "Above floor", "at floor", "| baseline |", "## Gates", "n"):
        assert words in text
    assert of_questions([]) not in text  # nothing is compressed


def test_tables_mark_leaks_floors_unstable_prompts_and_untrained_checkpoints(finished: Carried) -> None:
    summary = copy.deepcopy(finished.summary)
    text = summary_tables.markdown(finished.plan.study, finished.runs, summary)
    assert "LEAKS" not in text
    assert "|  | type_floor |  | 0.250 | 0.250 | 0.375 | 0.312 | 0.281 |" in text  # families count once in `macro`
    assert "|  | chance |  |  | 0.250 | 0.250 | 0.250 |  |" in text
    told = summary["derived"]["evaluations"]["ablated"]
    told["leaks"], told["unstable"] = ["text"], {"one_hop": 3, "choices/home": 0}
    summary["derived"]["finetunings"]["prefix_ft"]["best_step"] = 0
    text = summary_tables.markdown(finished.plan.study, finished.runs, summary)
    for words in (
        "| ablated | text (LEAKS) |",
        "ablated/text (LEAKS) minus baseline/text",
        "LEAKS: in ablated/text scored tokens",
        "the answer would change: 3 of one_hop.",
        "WARNING: prefix_ft was best at step 0",
    ):
        assert words in text


def test_what_a_training_had_no_memory_for_is_told(finished: Carried, capsys: pytest.CaptureFixture[str]) -> None:
    told = "distill left out of 1,200 passes for want of memory"
    assert "left out of" not in summary_tables.markdown(finished.plan.study, finished.runs, finished.summary)
    summary = copy.deepcopy(finished.summary)
    results = summary["derived"]["finetunings"]["prefix_ft"]
    results["skipped"] = skipped = {"answer_ce": 0, "distill": 1200}
    assert f"prefix_ft: {told}." in summary_tables.markdown(finished.plan.study, finished.runs, summary)
    training_stage.reported(Trained(**{**results, "skipped": {"distill": 0}}), Log())
    assert capsys.readouterr().out.endswith(f"at step {results['best_step']}\n")
    assert training_stage.reported(Trained(**results), Log())["skipped"] == skipped
    assert capsys.readouterr().out.endswith(f"at step {results['best_step']}; {told}\n")


def test_stages_that_come_to_the_same_are_told_as_repeats(finished: Carried) -> None:
    """What an ablation of settings that nothing reads would be: three runs of one thing."""
    raw = small_study()
    raw["stages"]["again"] = raw["stages"]["prefix_ft"] | {"accumulation": 1}
    raw["stages"]["other"] = raw["stages"]["prefix_ft"] | {"seed": 5}
    made = plan.make(Study.model_validate(loading._with_shared(raw)))
    found = build(made, finished.runs)
    assert found["derived"]["repeats"] == [["prefix_ft", "again"]]
    told = "prefix_ft, again resolve to the same configuration"
    assert told in summary_tables.markdown(made.study, finished.runs, found)
    assert told in "".join(summary_tables._sections(made.study, found, brief=True).__next__().notes)
    assert finished.summary["derived"]["repeats"] == []


def test_a_training_tells_its_peak_and_what_was_left_of_it(finished: Carried) -> None:
    summary, runs = copy.deepcopy(finished.summary), copy.deepcopy(finished.runs)
    results = runs["prefix_ft"].record.results
    assert results is not None
    assert 0 <= results["final_accuracy"] <= results["peak_accuracy"] <= 1
    results |= {"peak_accuracy": 0.75, "peak_step": 4, "final_accuracy": 0.5}
    told = "first tokens right 0.750 at their peak, step 4, 0.500 at the end, 0.250 less"
    assert told in summary_tables.markdown(finished.plan.study, runs, summary)
    results |= {"peak_accuracy": -1.0, "peak_step": -1, "final_accuracy": -1.0}  # resumed from before it was kept
    assert "first tokens right" not in summary_tables.markdown(finished.plan.study, runs, summary)


def test_finetunings_are_alike_only_with_equal_rows_and_seeds(finished: Carried) -> None:
    raw = small_study()
    raw["stages"]["other_ft"] = {"kind": "finetune", "wire": "text"}
    raw["effects"]["after"]["other_ft"] = raw["effects"]["after"]["prefix_ft"]
    summary = copy.deepcopy(finished.summary)
    trained = summary["derived"]["finetunings"]
    trained["other_ft"] = trained["prefix_ft"]
    for changes, alike in ({}, True), ({"rows": 1, "row_tokens": 1024}, False), ({"seed": 5}, False):
        raw["stages"]["other_ft"] |= changes
        study = Study.model_validate(loading._with_shared(raw))
        text = summary_tables.markdown(study, finished.runs, summary)
        assert ("prefix_ft, other_ft saw the same rows" in text) == alike
        assert ("Other rows, steps or seed: other_ft." in text) == (not alike)

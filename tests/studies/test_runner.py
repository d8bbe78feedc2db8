"""Claims about carrying out a study: each stage once, in order, and on from where it was interrupted."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.runs.store import Run, runs
from latentwire.studies import carry_out, loading, plan, report, runner
from latentwire.studies.readers import Readers
from latentwire.studies.runner import Carried, StageFailed
from latentwire.studies.spec import Study
from latentwire.training import finetune as finetuning
from tests.studies.study import model_folder, small_study, written

Carry = Callable[..., Carried]


@pytest.fixture
def carry(tmp_path: Path) -> Carry:
    """Carry out `small_study`, with `--set` changes, into `tmp_path/runs`."""

    def call(*changes: str, **options: Any) -> Carried:
        path = written(tmp_path, small_study())
        return runner.run(loading.load(str(path), changes), tmp_path / "runs", Log(), **options)

    return call


def folders(carried: Carried) -> dict[str, Path]:
    return {name: run.folder for name, run in carried.runs.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """A whole small study, carried out without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    study = loading.load(str(written(folder, small_study())))
    return runner.run(study, folder / "runs", Log())


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


def test_a_finished_study_loads_no_model_and_writes_nothing(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    first = carry(stages=["baseline", "ablated"])
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    monkeypatch.setattr(LM, "load", None)
    second = carry(stages=["baseline", "ablated"])
    assert folders(second) == folders(first)
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_what_changes_a_stage_runs_it_again_and_nothing_else(carry: Carry) -> None:
    first = carry(stages=["baseline", "ablated"])
    other = carry("stages.ablated.arms.none=none", stages=["baseline", "ablated"])
    assert folders(other)["baseline"] == folders(first)["baseline"]
    assert folders(other)["ablated"] != folders(first)["ablated"]
    assert carry("limit=7", stages=["baseline"]).runs["baseline"].folder != folders(first)["baseline"]
    # Back to what was there: it still counts.
    assert folders(carry(stages=["baseline", "ablated"])) == folders(first)
    # The seed is of finetunings; a baseline is the same for all of them.
    assert carry("seed=1", stages=["baseline"]).runs["baseline"].folder == folders(first)["baseline"]


def test_identity_follows_data_weights_and_parents_and_not_places(tmp_path: Path) -> None:
    def stages(folder: str, text: str = "Ada.", **changes: Any) -> dict[str, str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        data = tmp_path / folder / "mine.jsonl"
        data.write_text(
            json.dumps({"context": text, "question": "Who?", "choices": ["Ada", "Bob"], "gold": 0}) + "\n"
        )
        tasks = [{"name": "mine", "kind": "jsonl", "data": str(data)}]
        raw = small_study(tasks=tasks, comparisons=[], **changes)
        study = loading.load(str(written(tmp_path / folder, raw)))
        return {name: stage.identity for name, stage in plan.make(study).stages.items()}

    here = stages("a")
    assert stages("b") == here
    changed = stages("c", text="Bob.")
    assert changed["baseline"] != here["baseline"]
    assert changed["prefix_ft"] == here["prefix_ft"]
    other = stages("d", model=str(model_folder("qwen3")))
    assert not set(other.values()) & set(here.values())
    longer = small_study()["finetuning"] | {"steps": 9}
    trained = stages("e", finetuning=longer)
    assert trained["baseline"] == here["baseline"]
    assert trained["prefix_ft"] != here["prefix_ft"]
    assert trained["plain_after"] != here["plain_after"]


def test_one_stage_brings_what_it_needs(carry: Carry) -> None:
    assert list(carry(stages=["plain_after"]).runs) == ["prefix_ft", "plain_after"]


def test_fresh_runs_again_what_is_done(carry: Carry) -> None:
    first = carry(stages=["baseline"])
    second = carry(stages=["baseline"], fresh=True)
    assert folders(first)["baseline"] != folders(second)["baseline"]
    assert len(runs(first.folder.parent)) == 2


def test_a_finetuning_made_again_takes_its_evaluations_with_it(carry: Carry) -> None:
    first = carry(stages=["plain_after"])
    alone = carry(stages=["prefix_ft"], fresh=True)
    assert alone.summary["stages"]["plain_after"] == {"run": None, "status": "not run", "metrics": {}}
    second = carry(stages=["plain_after"])
    assert folders(second)["prefix_ft"] == folders(alone)["prefix_ft"] != folders(first)["prefix_ft"]
    assert folders(second)["plain_after"] != folders(first)["plain_after"]
    parents = second.runs["plain_after"].record.parents
    assert parents["prefix_ft"].run == second.runs["prefix_ft"].record.run
    assert folders(carry(stages=["plain_after"])) == folders(second)


def test_identity_holds_what_evaluations_read_in() -> None:
    study = Study.model_validate(loading._with_shared(small_study()))
    made = plan.make(study).stages["baseline"]
    assert made.configuration["dtype"] == ("bfloat16" if torch.cuda.is_available() else "float32")
    named = study.model_copy(update={"dtype": made.configuration["dtype"]})
    assert plan.make(named).stages["baseline"].identity == made.identity


def test_tables_mark_leaks_floors_unstable_prompts_and_untrained_checkpoints(finished: Carried) -> None:
    summary = copy.deepcopy(finished.summary)
    text = report.markdown(finished.plan.study, finished.runs, summary)
    assert "LEAKS" not in text
    assert "|  | type_floor |  | 0.250 | 0.250 | 0.375 | 0.312 | 0.281 |" in text  # families count once in `macro`
    assert "|  | chance |  |  | 0.250 | 0.250 | 0.250 |  |" in text
    told = summary["derived"]["evaluations"]["ablated"]
    told["leaks"], told["unstable"] = ["text"], {"one_hop": 3, "choices/home": 0}
    summary["derived"]["finetunings"]["prefix_ft"]["best_step"] = 0
    text = report.markdown(finished.plan.study, finished.runs, summary)
    for words in (
        "| ablated | text (LEAKS) |",
        "ablated/text (LEAKS) minus baseline/text",
        "LEAKS: in ablated/text scored tokens",
        "the answer would change: 3 of one_hop.",
        "WARNING: prefix_ft was best at step 0",
    ):
        assert words in text


def test_a_stage_starts_from_the_checkpoint_that_it_names(carry: Carry) -> None:
    # So large a learning rate makes every step worse: the best weights are the untrained ones.
    done = carry("finetuning.learning_rate=10.0", "finetuning.steps=4", "stages.plain_after.checkpoint=final")
    trained = folders(done)["prefix_ft"] / "checkpoints"
    readers = Readers(done.plan, done.runs)
    for checkpoint in ("best", "final"):
        lm = readers.load((done.plan.study.model, "prefix_ft", checkpoint))
        on_disk = LM.load(trained / checkpoint)
        assert all(map(torch.equal, lm.model.state_dict().values(), on_disk.model.state_dict().values()))
    plain, untrained = (
        (folders(done)[name] / "outcomes.jsonl").read_text() for name in ("plain_after", "baseline")
    )
    assert plain != untrained
    assert "WARNING: prefix_ft was best at step 0" in report.markdown(done.plan.study, done.runs, done.summary)


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
        text = report.markdown(study, finished.runs, summary)
        assert ("prefix_ft, other_ft saw the same rows" in text) == alike
        assert ("Other rows, steps or seed: other_ft." in text) == (not alike)


def test_a_failed_stage_keeps_what_was_done_and_the_next_call_goes_on(
    carry: Carry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finetune = finetuning.finetune

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(finetuning, "finetune", fail)
    with pytest.raises(
        StageFailed, match=r"prefix_ft failed with RuntimeError: out of memory \(more in .*log\.txt\)"
    ):
        carry()
    found = {run.record.stage: run for run in runs(tmp_path / "runs")}
    assert {name: run.status for name, run in found.items()} == {
        "baseline": "done",
        "ablated": "done",
        "prefix_ft": "failed",
    }
    assert "Traceback" in (found["prefix_ft"].folder / "log.txt").read_text()
    summary = json.loads((tmp_path / "runs" / "small" / "summary.json").read_text())
    assert summary["stages"]["prefix_ft"]["status"] == "failed"
    assert summary["stages"]["plain_after"] == {"run": None, "status": "not run", "metrics": {}}
    assert [each["name"] for each in summary["comparisons"]] == ["damage"]
    assert summary["derived"]["gates"][0]["held"] is None

    monkeypatch.setattr(finetuning, "finetune", finetune)
    again = carry()
    assert folders(again)["prefix_ft"] == found["prefix_ft"].folder
    assert {run.status for run in again.runs.values()} == {"done"}


def test_an_interrupted_evaluation_keeps_its_finished_tasks(
    carry: Carry, monkeypatch: pytest.MonkeyPatch, finished: Carried, tmp_path: Path
) -> None:
    evaluate, asked = carry_out.evaluate_tasks, []

    def interrupted(lm: LM, tasks: Any, wires: Any, **options: Any) -> Any:
        asked.append((tasks[0].name, len(wires)))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return evaluate(lm, tasks, wires, **options)

    monkeypatch.setattr(carry_out, "evaluate_tasks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry(stages=["baseline"])
    (run,) = runs(tmp_path / "runs")
    assert run.status == "interrupted"
    asked.clear()
    asked.append(("", 0))
    asked.append(("", 0))
    again = carry(stages=["baseline"]).runs["baseline"]
    assert again.folder == run.folder
    assert asked[2:] == [("one_hop", 0), ("choices/home", 2), ("choices/job", 2)]
    whole = finished.runs["baseline"]
    for name in ("outcomes.jsonl", "metrics.json"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert again.record.results is not None
    assert whole.record.results is not None
    assert again.record.results["floors"] == whole.record.results["floors"]


def test_a_changed_checkpoint_is_not_read(carry: Carry) -> None:
    weights = carry(stages=["prefix_ft"]).runs["prefix_ft"].folder / "checkpoints" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"model\.safetensors is gone or not as prefix_ft wrote it"):
        carry(stages=["plain_after"])


def test_killed_in_the_middle_of_a_finetuning_it_resumes_to_equal_numbers(
    finished: Carried, tmp_path: Path
) -> None:
    """`kill -9` once the first steps are on disk; the runs then say interrupted, and the next call goes on."""
    path = written(tmp_path, small_study())
    command = [sys.executable, "-m", "latentwire.cli", "run", str(path), "--runs", str(tmp_path / "runs")]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    stage = tmp_path / "runs" / "small" / "prefix_ft"
    deadline = time.monotonic() + 120
    while not any(_step(folder) >= 2 for folder in stage.glob("*/checkpoints/last")):
        assert worker.poll() is None, "it was to be killed and ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    worker.wait()

    before = {run.record.stage: run for run in runs(tmp_path / "runs")}
    assert before["prefix_ft"].status == "interrupted"
    assert before["baseline"].status == "done"
    again = runner.run(loading.load(str(path)), tmp_path / "runs", Log())
    assert folders(again)["baseline"] == before["baseline"].folder
    assert folders(again)["prefix_ft"] == before["prefix_ft"].folder
    assert "resumed at step" in (before["prefix_ft"].folder / "log.txt").read_text()
    for name in ("ablated_after", "plain_after"):
        ours, theirs = ((each.runs[name].folder / "metrics.json").read_text() for each in (again, finished))
        assert ours == theirs
    assert again.summary["comparisons"] == finished.summary["comparisons"]


def _step(checkpoint: Path) -> int:
    try:
        return int(json.loads((checkpoint / "state.json").read_text())["step"])
    except OSError:  # between two renames
        return -1


def test_one_template_changes_its_model_in_one_line() -> None:
    study = loading.load("quickstart", [f"model={model_folder()}"])
    assert study.model == str(model_folder())
    names = ["baseline", "ablated", "causal_ft", "prefix_ft", "ablated_after_causal_ft", "ablated_after_prefix_ft"]
    assert list(study.stages) == [*names, "plain_after_causal_ft", "plain_after_prefix_ft"]
    assert study.limit is not None
    assert study.limit >= 500
    causal, prefix = study.stages["causal_ft"], study.stages["prefix_ft"]
    assert causal.model_copy(update={"wire": ""}) == prefix.model_copy(update={"wire": ""})


def test_the_prefill_mask_template_runs_from_start_to_end(tmp_path: Path) -> None:
    """A tiny random Ministral3, local files for the five tasks and for the training data."""
    tasks = []
    for name in ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"):
        lines = [
            {
                "context": f"{name} {at}: a heron stood.",
                "question": "Where?",
                "choices": ["here", "there"],
                "gold": at % 2,
            }
            for at in range(6)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tasks.append({"name": name, "kind": "jsonl", "data": str(tmp_path / f"{name}.jsonl")})
    alpaca = [{"instruction": f"Say {at}.", "input": "", "output": f"{at} and {at + 1}."} for at in range(40)]
    (tmp_path / "alpaca.jsonl").write_text("".join(json.dumps(line) + "\n" for line in alpaca))
    changes = {
        "model": str(model_folder("ministral3")),
        "tasks": tasks,
        "limit": 6,
        "finetuning.data": {"kind": "file", "path": str(tmp_path / "alpaca.jsonl")},
        "finetuning.train_samples": 30,
        "finetuning.eval_samples": 5,
        "finetuning.steps": 4,
        "finetuning.eval_steps": 2,
        "finetuning.rows": 2,
        "finetuning.row_tokens": 128,
        "finetuning.accumulation": 1,
        "finetuning.warmup_steps": 1,
        "finetuning.stopping.no_signal_steps": None,
        "stages.long_ft.steps": 12,
        "stages.long_ft.stopping": {"patience": 1, "min_delta": 10.0, "min_steps": 4},
    }
    words = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix('...' + chr(10))}"
        for key, value in changes.items()
    ]
    carried = runner.run(loading.load("prefill-mask", words), tmp_path / "runs", Log())
    assert {run.status for run in carried.runs.values()} == {"done"}
    results = {name: run.record.results or {} for name, run in carried.runs.items()}
    assert results["causal_ft"]["train_rows_sha256"] == results["prefix_ft"]["train_rows_sha256"]
    assert results["long_ft"]["stopped"].startswith("plateau")
    assert results["long_ft"]["steps"] < 12
    assert len(carried.summary["derived"]["gates"]) == 3
    assert "causal_ft, prefix_ft saw the same rows" in (carried.folder / "summary.md").read_text()


def test_tokens_that_may_not_come_first_are_checked_before_anything_runs(tmp_path: Path) -> None:
    stages = {"only": {"kind": "evaluate", "arms": {"text": "text"}, "begin_suppress_tokens": ["old town"]}}
    raw = small_study(stages=stages, effects=None, comparisons=[], gates=[])
    with pytest.raises(UserError, match="begin_suppress_tokens: found 'old town'"):
        runner.run(loading.load(str(written(tmp_path, raw))), tmp_path / "runs", Log())
    assert not (tmp_path / "runs").exists()
    raw["stages"]["only"]["begin_suppress_tokens"] = ["."]
    carried = runner.run(loading.load(str(written(tmp_path, raw))), tmp_path / "runs", Log())
    assert carried.runs["only"].record.configuration["begin_suppress_tokens"] == ["."]

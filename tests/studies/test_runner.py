"""Claims about carrying out a study: each stage once, in order, and only what has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.runs.store import runs
from latentwire.studies import loading, plan, runner, summary_tables
from latentwire.studies.spec import Study
from tests.support.studies import Carry, folders, model_folder, small_study, written


@pytest.mark.slow
def test_a_finished_study_loads_no_model_and_writes_nothing(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    first = carry(stages=["baseline", "ablated"])
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    monkeypatch.setattr(LM, "load", None)
    second = carry(stages=["baseline", "ablated"])
    assert folders(second) == folders(first)
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_stage_brings_what_it_needs(carry: Carry) -> None:
    assert list(carry(stages=["plain_after"]).runs) == ["prefix_ft", "plain_after"]


@pytest.mark.slow
def test_fresh_runs_again_what_is_done(carry: Carry) -> None:
    first = carry(stages=["baseline"])
    second = carry(stages=["baseline"], fresh=True)
    assert folders(first)["baseline"] != folders(second)["baseline"]
    assert len(runs(first.folder.parent)) == 2


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_stage_starts_from_the_checkpoint_that_it_names(carry: Carry) -> None:
    # So large a learning rate makes every step worse: the best weights are the untrained ones.
    done = carry("finetuning.learning_rate=10.0", "finetuning.steps=4", "stages.plain_after.checkpoint=final")
    trained = folders(done)["prefix_ft"] / "checkpoints"
    readers = done.plan.model_loader(done.runs)
    for checkpoint in ("best", "final"):
        lm = readers.load((done.plan.study.model, "prefix_ft", checkpoint))
        on_disk = LM.load(trained / checkpoint)
        assert all(map(torch.equal, lm.model.state_dict().values(), on_disk.model.state_dict().values()))
    plain, untrained = (
        (folders(done)[name] / "outcomes.jsonl").read_text() for name in ("plain_after", "baseline")
    )
    assert plain != untrained
    assert "WARNING: prefix_ft was best at step 0" in summary_tables.markdown(
        done.plan.study, done.runs, done.summary
    )


def test_a_task_and_an_arm_say_how_answers_are_generated(tmp_path: Path) -> None:
    arms = {"short": "text", "long": "text"}
    only = {"kind": "evaluate", "arms": arms, "decoding": {"long": {"max_new_tokens": 9, "min_new_tokens": 9}}}
    raw = small_study(stages={"only": only}, effects=None, comparisons=[], gates=[], tasks=["one_hop"], limit=3)
    raw["decoding"] = {"one_hop": {"max_new_tokens": 1, "stop": []}}
    carried = runner.run(loading.load(str(written(tmp_path, raw))), tmp_path / "runs", Log())
    lines = [json.loads(line) for line in (folders(carried)["only"] / "outcomes.jsonl").read_text().splitlines()]
    lengths = {arm: [len(line["prediction"]) for line in lines if line["arm"] == arm] for arm in arms}
    assert len(lengths["short"]) == len(lengths["long"]) == 3
    assert sum(lengths["short"]) < sum(lengths["long"])
    plain = plan.make(loading.load(str(written(tmp_path, raw | {"decoding": {}})))).stages["only"].identity
    assert carried.runs["only"].record.identity != plain
    for wrong, problem in (
        ({"decoding": {"two_hop": {}}}, "decoding: found 'two_hop', expected a task of this study"),
        ({"stages": {"only": only | {"decoding": {"longer": {}}}}}, "found 'longer', expected one of short, long"),
        ({"stages": {"only": only | {"decoding": {}}}}, "found the wire 'text' a second time"),
    ):
        with pytest.raises(UserError, match=problem):
            plan.make(loading.load(str(written(tmp_path, raw | wrong))))


@pytest.mark.slow
def test_tokens_that_may_not_come_first_are_checked_before_anything_runs(tmp_path: Path) -> None:
    stages = {"only": {"kind": "evaluate", "arms": {"text": "text"}, "begin_suppress_tokens": ["old town"]}}
    raw = small_study(stages=stages, effects=None, comparisons=[], gates=[])
    with pytest.raises(UserError, match="begin_suppress_tokens: found 'old town'"):
        runner.run(loading.load(str(written(tmp_path, raw))), tmp_path / "runs", Log())
    assert not (tmp_path / "runs").exists()
    raw["stages"]["only"]["begin_suppress_tokens"] = ["."]
    carried = runner.run(loading.load(str(written(tmp_path, raw))), tmp_path / "runs", Log())
    assert carried.runs["only"].record.configuration["begin_suppress_tokens"] == ["."]

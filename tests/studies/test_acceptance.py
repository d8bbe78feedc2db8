"""Gates that a trained wire must hold, and sizes of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.evaluation.outcomes import read_outcomes
from latentwire.runs.store import Record, Run
from latentwire.studies import commands, loading
from latentwire.studies.stages import TrainWire
from latentwire.training.data.world import WorldPassages
from latentwire.training.wire.passages import passages
from latentwire.training.wire.wire_training_config import PRESETS
from tests.support.studies import written
from tests.support.wire_studies import HERON, A, own_rows


def run(root: Path, stages: dict[str, Any]) -> int:
    root.mkdir(exist_ok=True)
    study = {"name": "held", "model": HERON, "tasks": ["one_hop"], "limit": 4, "stages": stages}
    return commands.run(str(written(root, study)), (), (), root / "runs", fresh=False)


def one(root: Path, stage: str) -> Run:
    (found,) = (root / "runs" / "held" / stage).glob("*/run.json")
    return Run.read(found.parent)


def judged(record: Record) -> list[dict[str, Any]]:
    assert record.results is not None
    return list(record.results["accept"])


@pytest.mark.slow
def test_a_gate_is_held_against_the_bound_on_five_hundred_examples(tmp_path: Path) -> None:
    gates = ["first_token_top5 >= 0.99", "nll <= 50"]
    assert run(tmp_path, {"A": {**A, "accept": gates}, "text": {"kind": "evaluate", "arms": {"t": "text"}}}) == 1
    record = one(tmp_path, "A").record
    first, second = judged(record)
    assert record.status == "rejected"
    assert [first["held"], second["held"]] == [False, True]
    assert first["n"] == second["n"] == 500
    assert first["low"] <= first["value"] <= first["high"] < 0.99
    # What chose the checkpoint, two passages, judges nothing.
    chose = passages(WorldPassages(tiers=("one_hop",)), {}, "validation", A["eval_samples"])
    outcomes = read_outcomes(one(tmp_path, "A").folder / "outcomes.jsonl")
    assert len(chose) == 2
    assert not {each.group for each in chose} & {each.group for each in outcomes}
    metrics = json.loads((one(tmp_path, "A").folder / "metrics.json").read_text())
    assert metrics[HERON]["one_hop"]["first_token_top5"]["value"] == first["value"]


@pytest.mark.slow
def test_a_rejected_stage_keeps_its_numbers_and_nothing_starts_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {
        "A": {**A, "data": own_rows(tmp_path), "accept": ["f1 >= 0.9"]},
        "B": {**A, "start_from": "A", "reader_prefix": 2, "steps": 1},
        "read": {"kind": "evaluate", "arms": {"b": "stage:B"}},
        "apart": {"kind": "evaluate", "arms": {"text": "text"}},
    }
    assert run(tmp_path, stages) == 1
    told = capsys.readouterr()
    assert "the stage 'A' is rejected" in told.err
    assert "NOT HELD" in told.out
    summary = json.loads((tmp_path / "runs" / "held" / "summary.json").read_text())
    assert {name: stage["status"] for name, stage in summary["stages"].items()} == {
        "A": "rejected",
        "B": "not run",
        "read": "not run",
        "apart": "done",
    }
    assert (
        summary["stages"]["A"]["metrics"][HERON]["jsonl"]["f1"]["n"] == judged(one(tmp_path, "A").record)[0]["n"]
    )
    # Asked again it is judged again, and not trained again.
    seconds = one(tmp_path, "A").record.results
    assert run(tmp_path, stages) == 1
    again = one(tmp_path, "A").record.results
    assert seconds is not None
    assert again is not None
    assert again["seconds"] == seconds["seconds"]
    easy = {**stages, "A": {**stages["A"], "accept": ["f1 >= 0"]}}
    assert run(tmp_path / "easy", easy) == 0
    assert one(tmp_path / "easy", "read").record.status == "done"


@pytest.mark.slow
def test_all_of_a_task_with_fewer_examples_are_enough(tmp_path: Path) -> None:
    fit = {**A, "data": own_rows(tmp_path), "accept": ["nll >= 0", "f1 <= 1"]}
    stages = {"A": fit, "text": {"kind": "evaluate", "arms": {"t": "text"}}}
    assert run(tmp_path, stages) == 0
    assert 0 < judged(one(tmp_path, "A").record)[0]["n"] < 20
    assert "expected 500; all count" in (one(tmp_path, "A").folder / "log.txt").read_text()
    with pytest.raises(UserError, match="accept_examples: found 1, expected at least"):
        run(tmp_path / "fewer", {**stages, "A": {**fit, "accept_examples": 1}})


@pytest.mark.slow
def test_gates_on_few_examples_or_other_metrics_are_refused(tmp_path: Path) -> None:
    few = {**A, "accept": ["f1 >= 0.1"], "accept_examples": 499}
    with pytest.raises(UserError, match=r"stages\.A: accept_examples: found 499, expected at least 500"):
        run(tmp_path, {"A": few})
    with pytest.raises(UserError, match="nearest: exact_match"):
        run(tmp_path, {"A": {**A, "accept": ["exact_mach >= 0.1"]}})
    assert not (tmp_path / "runs").exists()


def test_a_preset_fills_what_a_stage_leaves_open(tmp_path: Path) -> None:
    sized = {key: value for key, value in A.items() if key not in PRESETS["smoke"]}
    small = TrainWire.model_validate({**sized, "preset": "smoke", "passages": 3})
    assert small.passages == 3
    assert all(getattr(small, key) == value for key, value in PRESETS["smoke"].items() if key != "passages")
    assert TrainWire.model_validate(small.model_dump()) == small


def test_the_commands_preset_goes_over_the_file_and_set_over_both() -> None:
    plain = loading.load("latent-wire").stages
    small = loading.load("latent-wire", ["stages.fit.steps=7"], "smoke").stages
    hero = loading.load("latent-wire", (), "hero").stages
    sizes = {name: [found[name].steps for name in ("fit", "constant")] for name, found in
             {"plain": plain, "small": small, "hero": hero}.items()}  # fmt: skip
    assert sizes == {"plain": [1600, 1600], "small": [7, 20], "hero": [8000, 8000]}
    kept = set(TrainWire.model_fields) - set(PRESETS["smoke"]) - {"preset"}
    assert all(getattr(small["fit"], name) == getattr(plain["fit"], name) for name in kept)
    with pytest.raises(UserError, match="--preset: found 'large', expected one of smoke, hero"):
        loading.load("latent-wire", (), "large")
    with pytest.raises(UserError, match="expected a stage of kind wire"):
        loading.load("quickstart", (), "smoke")

"""What a study will take is counted from shapes and files, and a run's own pace replaces what was assumed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from latentwire import cli
from latentwire.bench.setup import Setup
from latentwire.errors import UserError
from latentwire.estimates import forecast, offers, stage_workloads
from latentwire.estimates.model_shapes import ModelShape
from latentwire.estimates.other_workloads import finetuning
from latentwire.estimates.run_pace import RunPace, pace
from latentwire.estimates.workload import GIB, Workload
from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.model import LM
from latentwire.lm.operation_counts import Counts, causal
from latentwire.runs.store import Run
from latentwire.studies import loading
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.wire.step_needs import StepNeeds, StepShape
from tests.runs.test_store import record
from tests.support.studies import written
from tests.support.wire_studies import FIT

NOTHING = Workload("finetune", 1, 0, 1.0, 0, 0, 0, 0, 0, 0)

# What an earlier study computed during a run of 6,000 steps at 0.349 a second: hours and dollars of staying on
# an A100 40GB and of moving to two other offers, optimistic / base / pessimistic.
EARLIER = {
    "here": ((4.58, 5.38, 8.56), (3.39, 3.98, 6.34)),
    "cheaper": ((4.96, 5.80, 9.17), (3.31, 3.87, 6.12)),
    "h100": ((4.48, 5.18, 7.96), (5.08, 5.87, 9.03)),
}


def test_the_table_of_the_earlier_study_comes_out_again() -> None:
    a100: dict[str, Any] = {
        "gpu": "A100",
        "memory_gib": 39,
        "tflops": 312,
        "bandwidth_tbs": 1.55,
        "start_minutes": 0,
    }
    shipped = offers.read()
    known = offers.Offers.model_validate(
        {
            **shipped.model_dump(include={"checked", "before", "efficiency", "launch_ms"}),
            # Its three factors, and what it assumed of each move: minutes until it runs, and how fast it then is.
            "during": {"optimistic": 0.959, "base": 1.1265, "pessimistic": 1.7925},
            "offers": {
                "here": {**a100, "dollars_per_hour": 0.7411},
                "cheaper": {
                    **a100,
                    "gpu": "other",
                    "dollars_per_hour": 0.6676,
                    "setup_minutes": 6,
                    "speed": 1 / 1.06,
                },
                "h100": {
                    **a100,
                    "gpu": "H100",
                    "dollars_per_hour": 1.1347,
                    "setup_minutes": 28,
                    "speed": 1 / 0.875,
                },
            },
        }
    )
    found = forecast.during(RunPace("A100", 0, 6000, 1 / 0.349), NOTHING, known)
    assert {each.offer: each.moves for each in found} == {"here": False, "cheaper": True, "h100": True}
    for each in found:
        hours, dollars = EARLIER[each.offer]
        assert each.dollars is not None
        assert tuple(each.hours.values()) == pytest.approx(hours, abs=0.011)
        assert tuple(each.dollars.values()) == pytest.approx(dollars, abs=0.011)


def shape(name: str) -> ModelShape:
    with torch.device("meta"):
        model = Setup(torch.device("meta"), name, precision=torch.bfloat16).model()
    numbers = sum(weight.numel() for weight in model.parameters())
    words = Tokenizing.load("embedded:heron")
    return ModelShape(name, Counts.of(model), Counts.of(model, 1).lora, numbers, model.config.vocab_size, words)


# docs/performance.md: packed rows of 1,024 tokens that are 97 % full on one H200, tokens a second, GiB; the
# first two were fitted to.
MEASURED = [("3b", 16, 21_340, 65.5), ("1b", 16, 56_930, None), ("3b", 32, 21_710, 123.0), ("3b", 4, 20_730, 22.0)]


@pytest.mark.parametrize(("name", "rows", "speed", "gib"), MEASURED)
def test_finetunings_measured_on_an_h200_are_estimated_within_ten_per_cent(
    name: str, rows: int, speed: float, gib: float | None
) -> None:
    settings = Finetuning(
        steps=1000,
        rows=rows,
        eval_steps=10**6,
        eval_samples=1,
        samples=0,
        weights="bfloat16",
        precision="bf16",
        optimizer="adafactor",
    )
    work, known = finetuning(settings, shape(name), 194), offers.read()
    # Forward and backward only: nothing started, saved or updated.
    bare = replace(work, moved=0, written=0)
    seconds = (bare.seconds(known.offers["h200"], known) - bare.start_seconds(known)) / 1000
    assert 0.97 * 1024 * rows / seconds == pytest.approx(speed, rel=0.1)
    if gib is not None and rows > 4:  # what does not grow with the rows is 4 GiB less than was kept then
        assert work.memory / GIB == pytest.approx(gib, rel=0.05)


def test_the_operations_of_a_wire_are_those_of_the_benchmark() -> None:
    counts = shape("8b").counts
    one = StepNeeds.counted(counts, counts, StepShape(1, 144, 160, 32, 37, 2, 8 * causal(20)))
    assert (one + one).step == 2 * one.step
    without = StepNeeds.counted(
        counts, counts, StepShape(1, 144, 160, 32, 37, 2, 8 * causal(20)), teaches=False, encodes=False
    )
    assert without.step == pytest.approx(one.student)


STUDY: dict[str, Any] = {
    "name": "planned",
    "model": "embedded:wren",
    "tasks": ["one_hop", "choices/home"],
    "limit": 8,
    "stages": {
        "baseline": {"kind": "evaluate", "arms": {"text": "text", "none": "none"}},
        "ft": {"kind": "finetune", "steps": 20, "rows": 2, "row_tokens": 256, "eval_samples": 4},
        "fit": FIT,
        "bridge": {
            **FIT,
            "wire": {**FIT["wire"], "adapters": {"embedded:heron": {"kind": "deep_prefix", "hidden": 8}}},
        },
    },
}


def test_every_kind_of_stage_is_estimated_without_any_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LM, "load", lambda *args, **options: pytest.fail("weights were read"))
    numbers = tmp_path / "numbers.json"
    words = ["estimate", str(written(tmp_path, STUDY)), "--json", str(numbers)]
    monkeypatch.setattr(sys, "argv", ["latentwire", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    found = json.loads(numbers.read_text())
    assert found["stages"].keys() == STUDY["stages"].keys()
    assert all(stage["operations"] > 0 and stage["memory"] > 0 for stage in found["stages"].values())
    assert found["stages"]["baseline"]["units"] == 2 * 2 * 8
    for offer in found["offers"]:
        hours, dollars = offer["hours"], offer["dollars"]
        assert hours["optimistic"] < hours["base"] < hours["pessimistic"]
        price = offers.read().offers[offer["offer"]].dollars_per_hour
        assert dollars["base"] == pytest.approx(price * hours["base"])
    assert "prices as of 2026-11-29" in capsys.readouterr().out


def test_more_steps_take_longer_and_what_does_not_fit_is_said(tmp_path: Path) -> None:
    def seconds(*changes: str) -> float:
        """Without the start, which is the same for any number of steps."""
        study = loading.load(str(written(tmp_path, STUDY)), changes)
        known, work = offers.read(), stage_workloads.count(study, ["ft"])["ft"]
        return work.seconds(known.offers["h200"], known) - work.start_seconds(known)

    assert seconds("stages.ft.steps=20000") > 10 * seconds()
    big = {"big": replace(NOTHING, memory=100.0 * GIB)}
    fits = {each.offer: each.fits for each in forecast.before(big, offers.read())}
    assert fits["h200"]
    assert not fits["a100-40gb"]
    assert next(iter(fits)) == "h200"  # offers on which it does not fit come last, however cheap


def run_of(folder: Path, kind: str, configuration: dict[str, Any], files: dict[str, str]) -> Run:
    folder.mkdir()
    run = Run(
        folder, record(kind=kind, stage="ft", configuration=configuration, machine={"accelerator": "NVIDIA H200"})
    )
    run.write()
    for name, text in files.items():
        (folder / name).write_text(text)
    return run


def test_a_running_training_is_forecast_from_its_own_steps_and_evaluations(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": 9.0, "eval_seconds": 60.0}]
    # The first step takes long and does not count; each further one takes two seconds.
    lines += [
        {"step": at, "loss": 1.0, "seconds": 30.0 + 2 * (at - 1), "memory_gib": 11.0} for at in (1, 21, 41, 61)
    ]
    lines.insert(-1, {"step": 50, "eval_loss": 5.0, "eval_seconds": 10.0})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8'
    run = run_of(tmp_path / "run", "finetune", {"steps": 200, "eval_steps": 50}, {"diagnostics.jsonl": text})
    found = pace(run)
    assert (found.done, found.left, found.seconds_each) == (61, 139, 2.0)
    assert (found.evaluations_left, found.evaluation_seconds) == (3, 10.0)
    assert found.seconds_left == 139 * 2.0 + 3 * 10.0
    assert found.since_snapshot == 11
    known = offers.read()
    stay, *moves = forecast.during(found, replace(NOTHING, operations=1e18), known)
    assert (stay.offer, stay.moves, stay.hours["base"]) == ("h200", False, found.seconds_left / 3600)
    slow = next(each for each in moves if each.offer == "a100-40gb")
    here, there = known.offers["h200"], known.offers["a100-40gb"]
    again = (found.seconds_left + 11 * 2.0) / 3600 * here.tflops / there.tflops
    assert slow.hours["base"] == pytest.approx((there.setup_minutes + there.start_minutes) / 60 + again, rel=1e-3)


def test_a_recorded_run_on_a_shared_card_ends_within_the_estimate_of_its_middle(tmp_path: Path) -> None:
    """The wire of docs/results/wire-real.md: 600 steps in 310 s, slower in its second half."""
    recorded = Path(__file__).parents[2] / "docs/results/wire-real/training.jsonl"
    lines = [line for line in recorded.read_text().splitlines() if json.loads(line)["step"] <= 281]
    half = run_of(
        tmp_path / "run", "wire", {"steps": 600, "eval_steps": 250}, {"diagnostics.jsonl": "\n".join(lines)}
    )
    found = pace(half)
    took = 309.811 - 131.527
    assert found.seconds_left == pytest.approx(took, rel=0.2)
    assert found.seconds_left < took < found.seconds_left * offers.read().during.pessimistic


def test_a_running_evaluation_is_forecast_from_its_log(tmp_path: Path) -> None:
    log = "base: 100 of 2,000 answers, 9.0 a second, 3 min left\nbase: 1,200 of 2,000 answers, 40.0 a second\n"
    found = pace(run_of(tmp_path / "run", "evaluate", {}, {"log.txt": log}))
    assert (found.left, found.seconds_left) == (800, 20.0)


def test_a_run_that_has_shown_nothing_and_a_wrong_offer_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected two"):
        pace(run_of(tmp_path / "run", "wire", {"steps": 9, "eval_steps": 3}, {"diagnostics.jsonl": ""}))
    shipped = offers.read().model_dump(mode="json", exclude_none=True)
    shipped["offers"]["h200"]["dollars_per_hour"] = -1
    path = tmp_path / "offers.yaml"
    path.write_text(yaml.safe_dump(shipped))
    with pytest.raises(UserError, match=r"offers.h200.dollars_per_hour: found -1"):
        offers.read(path)

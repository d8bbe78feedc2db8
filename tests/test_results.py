"""The tables of docs/results follow from the outcomes kept beside them."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentwire.evaluation.combinations import PairedArms
from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.statistics import compare
from latentwire.evaluation.summarize import Metrics, by_arm, summarize
from latentwire.studies import loading
from tests.support.result_cells import near, numbers

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ARMS = {
    "text": "text",
    "the text after a learned prefix of 16 (style)": "styled_text",
    "latents, 4 : 1": "latents",
    "the same latents in 4 bits": "4bit",
    "`evict,ratio=4`": "evict",
    "`budget,ratio=4`": "budget",
    "`nth,ratio=4` (where the wire began)": "nth",
    "none": "none",
    "mean of many messages": "mean",
    "zero": "zero",
    "deranged: another passage's latents": "deranged",
    "the text of another passage": "deranged_text",
    "counterfactual (n = 1,046): follows the exchanged answer": "counterfactual",
    "the text, read with adapters of rank 64": "adapted_text",
    "latents, 4 : 1, trained again": "again_latents",
    "deranged, 4 : 1, trained again": "again_deranged",
    "latents, 8 : 1": "latents8",
    "deranged, 8 : 1": "deranged8",
    "`evict,ratio=8`": "evict8",
    "`budget,ratio=8`": "budget8",
    "latents, 4 : 1, seed 1": "seed1_latents",
    "latents, 4 : 1, seed 2": "seed2_latents",
    "deranged, 4 : 1, seed 1": "seed1_deranged",
    "deranged, 4 : 1, seed 2": "seed2_deranged",
    "latents, 16 : 1": "latents16",
    "deranged, 16 : 1": "deranged16",
    "`evict,ratio=16`": "evict16",
    "`budget,ratio=16`": "budget16",
}
DIFFERENCES = {
    "latents minus `evict`": ("latents", "evict"),
    "latents minus `budget`": ("latents", "budget"),
    "latents minus text": ("latents", "text"),
    "latents minus the text after a learned prefix": ("latents", "styled_text"),
    "deranged minus none (exploratory)": ("deranged", "none"),
    "4 : 1, trained again, minus the first": ("again_latents", "latents"),
    "4 : 1, trained again, minus the text with adapters": ("again_latents", "adapted_text"),
    "the text with adapters minus the text after a learned prefix": ("adapted_text", "styled_text"),
    "8 : 1 minus 4 : 1, trained again": ("latents8", "again_latents"),
    "8 : 1 minus `evict,ratio=8`": ("latents8", "evict8"),
    "8 : 1 minus `budget,ratio=8`": ("latents8", "budget8"),
    "deranged minus none, 4 : 1, trained again": ("again_deranged", "none"),
    "deranged minus none, 8 : 1": ("deranged8", "none"),
    "seed 1 minus seed 0": ("seed1_latents", "again_latents"),
    "seed 2 minus seed 0": ("seed2_latents", "again_latents"),
    "16 : 1 minus 8 : 1": ("latents16", "latents8"),
    "16 : 1 minus `evict,ratio=16`": ("latents16", "evict16"),
    "16 : 1 minus `budget,ratio=16`": ("latents16", "budget16"),
    "deranged minus none, 16 : 1": ("deranged16", "none"),
}
GAPS = {
    "4 : 1, first session": "latents",
    "4 : 1, second session": "again_latents",
    "8 : 1": "latents8",
    "16 : 1": "latents16",
}
AIMS = {"4": 0.95, "8": 0.90, "16": 0.75}
TRAININGS = {"training": 600, "training-again": 600, "training-eight": 600, "training-adapted": 300} | {
    f"training-{name}": 600 for name in ("seed1", "seed2", "sixteen")
}


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """Outcomes by arm, from the evaluations of all sessions; `again_` are the arms of the wire trained again."""
    path = tmp_path_factory.mktemp("outcomes") / "outcomes.jsonl"
    outcomes: dict[str, list[Outcome]] = {}
    for stage in ("untrained", "read", "again", "eight", "adapted", "seed1", "seed2", "sixteen"):
        path.write_bytes(lzma.decompress((RESULTS / "wire-real" / f"{stage}.jsonl.xz").read_bytes()))
        prefix = f"{stage}_" if stage in ("again", "seed1", "seed2") else ""
        outcomes |= {prefix + arm: own for arm, own in by_arm(read_outcomes(path)).items()}
    return outcomes


@pytest.fixture(scope="module")
def metrics(arms: dict[str, list[Outcome]]) -> Metrics:
    """By arm."""
    return {arm: next(iter(summarize(own).values())) for arm, own in arms.items()}


def _table(rows: Iterable[str]) -> dict[str, list[str]]:
    """The cells of rows of the page, by the first cell."""
    text = (RESULTS / "wire-real.md").read_text(encoding="utf-8").replace("−", "-")
    lines = [line.replace("**", "").strip("| ") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0] in rows}


@pytest.mark.parametrize("row", ARMS)
def test_every_number_of_the_real_wire_follows_from_its_outcomes(row: str, metrics: Metrics) -> None:
    exact, f1, nll, first = _table(ARMS)[row]
    found = metrics[ARMS[row]]["xquad"]
    for cell, name in ((exact, "exact_match"), (f1, "f1")):
        number = found[name]
        assert number["low"] is not None
        assert numbers(cell) == near(number["value"], number["low"], number["high"])
    assert float(nll) == pytest.approx(found["nll"]["value"], abs=0.006)
    assert float(first) == pytest.approx(found["first_token_top1"]["value"], abs=0.0006)


@pytest.mark.parametrize("row", DIFFERENCES)
def test_every_difference_of_the_real_wire_follows_from_its_outcomes(
    row: str, arms: dict[str, list[Outcome]]
) -> None:
    a, b = DIFFERENCES[row]
    found = compare(arms[a], arms[b], "f1")
    assert numbers(_table(DIFFERENCES)[row][0]) == near(found.difference, found.low, found.high)


def _closed(latents: str, yardstick: str, metric: str, arms: dict[str, list[Outcome]]) -> list[Any]:
    chosen = {
        arm: [replace(o, metrics={metric: o.metrics[metric]}) for o in arms[arm]]
        for arm in (latents, yardstick, "none")
    }
    ratio = PairedArms.of(chosen).ratio({latents: 1, "none": -1}, {yardstick: 1, "none": -1})
    return near(ratio.value, ratio.low, ratio.high)


@pytest.mark.parametrize("row", GAPS)
def test_every_share_of_the_gap_follows_from_the_outcomes(row: str, arms: dict[str, list[Outcome]]) -> None:
    cells = _table(GAPS)[row]
    for cell, yardstick in zip(cells, ("text", "styled_text", "adapted_text"), strict=True):
        assert numbers(cell) == _closed(GAPS[row], yardstick, "f1", arms)
        assert numbers(cell)[1] < AIMS[row.split()[0]]  # as the page says of all of them
    assert _closed("again_latents", "adapted_text", "exact_match", arms) == [0.732, 0.681, 0.785]


def test_the_ten_questions_are_every_119th_with_what_was_answered(arms: dict[str, list[Outcome]]) -> None:
    text = (RESULTS / "wire-real.md").read_text(encoding="utf-8").split("## Ten questions")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    answers = zip(
        *([o.prediction for o in arms[arm][::119]] for arm in ("text", "latents", "deranged")), strict=True
    )
    assert [row[2:] for row in rows] == [list(each) for each in answers]


def test_all_arms_answered_the_questions_of_the_test_set(metrics: Metrics) -> None:
    assert {arm: of["xquad"]["f1"]["n"] for arm, of in metrics.items() if arm != "counterfactual"} == {
        arm: 1190 for arm in metrics if arm != "counterfactual"
    }


@pytest.mark.parametrize("name", TRAININGS)
def test_the_trainings_met_finite_losses_only(name: str) -> None:
    text = (RESULTS / "wire-real" / f"{name}.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) >= TRAININGS[name] // 30
    assert all(0 < loss < 10 for loss in losses)
    assert lines[-1]["step"] == TRAININGS[name]


def test_the_same_steps_take_less_memory_than_in_the_first_session() -> None:
    peaks = []
    for name in ("training", "training-again"):
        text = (RESULTS / "wire-real" / f"{name}.jsonl").read_text(encoding="utf-8")
        peaks.append(max(json.loads(line).get("memory_gib", 0.0) for line in text.splitlines()))
    assert peaks == [pytest.approx(30.3, abs=0.06), pytest.approx(18.3, abs=0.06)]


FIRST_DAY = {
    "SmolLM2-135M-Instruct": "smollm2-135m",
    "Gemma 3 270M": "gemma3-270m",
    "Qwen2.5-Coder-0.5B-Instruct": "qwen-0.5b",
    "Qwen2.5-Coder-1.5B-Instruct": "qwen-1.5b",
}


@pytest.mark.parametrize("model", FIRST_DAY)
def test_every_score_of_the_four_real_models_follows_from_their_outcomes(model: str, tmp_path: Path) -> None:
    outcomes = tmp_path / "outcomes.jsonl"
    outcomes.write_bytes(lzma.decompress((RESULTS / f"first-day/{FIRST_DAY[model]}.jsonl.xz").read_bytes()))
    metrics = summarize(read_outcomes(outcomes))
    section = (RESULTS / "first-day.md").read_text(encoding="utf-8").split(f"### {model},")[1].split("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert {row[0].strip("`") for row in rows} == set(metrics)
    for arm, exact, f1, nll, first in rows:
        scores = metrics[arm.strip("`")]["squad"]
        for cell, name in ((exact, "exact_match"), (f1, "f1")):
            number = scores[name]
            assert numbers(cell) == near(number["value"], number["low"], number["high"])
            assert scores[name]["n"] == 1190
        assert float(nll) == pytest.approx(scores["nll"]["value"], abs=0.006)
        assert float(first) == pytest.approx(scores["first_token_top1"]["value"], abs=0.0006)


def test_two_thousand_steps_on_a_model_that_once_gave_nan_are_finite() -> None:
    text = (RESULTS / "first-day" / "two-thousand-steps.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert lines[-1]["step"] == 2000
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"]) for line in trained)


@pytest.mark.parametrize("name", ["study", "untouched", "layers", "rates", "long", "sums"])
def test_the_studies_of_real_prefills_can_be_read(name: str) -> None:
    study = loading.load(str(RESULTS / "prefill-real" / f"{name}.yaml"))
    assert study.stages
    if study.effects is not None:
        assert study.effects.metrics == {"xquad": "f1"}


def test_both_finetunings_of_the_real_prefills_differ_in_their_mask_alone() -> None:
    study = loading.load(str(RESULTS / "prefill-real" / "study.yaml"))
    for seed in (0, 1, 2):
        one, other = (study.stages[f"{name}-seed{seed}"].model_dump() for name in ("causal_ft", "prefix_ft"))
        assert (one.pop("wire"), other.pop("wire")) == ("text", "text,mask=prefix")
        assert one == other

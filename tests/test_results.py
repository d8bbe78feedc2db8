"""The tables of docs/results follow from the outcomes kept beside them."""

from __future__ import annotations

import json
import lzma
import math
import re
from pathlib import Path

import pytest

from latentwire.evaluation.outcomes import read_outcomes
from latentwire.evaluation.summarize import Metrics, summarize
from latentwire.studies import loading

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
}


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    """By arm, from the outcomes of the two evaluations."""
    folder = tmp_path_factory.mktemp("outcomes")
    numbers: Metrics = {}
    for stage in ("untrained", "read"):
        path = folder / f"{stage}.jsonl"
        path.write_bytes(lzma.decompress((RESULTS / "wire-real" / f"{stage}.jsonl.xz").read_bytes()))
        numbers |= summarize(read_outcomes(path))
    return numbers


def _table() -> dict[str, list[str]]:
    text = (RESULTS / "wire-real.md").read_text(encoding="utf-8")
    lines = [line.replace("**", "").strip("| ") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0] in ARMS}


@pytest.mark.parametrize("row", ARMS)
def test_every_number_of_the_real_wire_follows_from_its_outcomes(row: str, metrics: Metrics) -> None:
    exact, f1, nll, first = _table()[row]
    found = metrics[ARMS[row]]["xquad"]
    for cell, name in ((exact, "exact_match"), (f1, "f1")):
        value, low, high = (float(number) for number in re.findall(r"[0-9.]+", cell))
        number = found[name]
        assert number["low"] is not None
        assert number["high"] is not None
        # Bounds come from resampling; how it is done may change a last digit.
        assert (value, low, high) == (
            pytest.approx(number["value"], abs=0.0006),
            pytest.approx(number["low"], abs=0.006),
            pytest.approx(number["high"], abs=0.006),
        )
    assert float(nll) == pytest.approx(found["nll"]["value"], abs=0.006)
    assert float(first) == pytest.approx(found["first_token_top1"]["value"], abs=0.0006)


def test_all_arms_answered_the_questions_of_the_test_set(metrics: Metrics) -> None:
    assert {arm: of["xquad"]["f1"]["n"] for arm, of in metrics.items() if arm != "counterfactual"} == {
        arm: 1190 for arm in metrics if arm != "counterfactual"
    }


def test_the_training_met_finite_losses_only() -> None:
    lines = [
        json.loads(line)
        for line in (RESULTS / "wire-real" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) > 20
    assert all(0 < loss < 10 for loss in losses)


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
            value, low, high = (float(number) for number in re.findall(r"[0-9.]+", cell))
            assert (value, low, high) == (
                pytest.approx(scores[name]["value"], abs=0.0006),
                pytest.approx(scores[name]["low"], abs=0.006),
                pytest.approx(scores[name]["high"], abs=0.006),
            )
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

"""What docs/results/wire-real.md says over seeds, in its curve and of a model of 8B follows from what was kept."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.pooled import BySeed, PooledArms, compare_pooled, estimate_pooled
from tests.support.result_cells import near, numbers

RESULTS = Path(__file__).parent.parent / "docs" / "results"
KEPT = RESULTS / "wire-real"
PAGE = (RESULTS / "wire-real.md").read_text(encoding="utf-8").replace("−", "-").replace("**", "")
PROSE = " ".join(PAGE.split())
SEEDS = ("again", "seed1", "seed2")
ALONE = {
    "none": "untrained/none",
    "the text": "untrained/text",
    "the text after a learned prefix": "read/styled_text",
    "the text with adapters": "adapted/adapted_text",
    "`evict`": "untrained/evict",
    "`budget`": "untrained/budget",
}
YARDSTICKS = ("the text", "the text after a learned prefix", "the text with adapters")
Kept = dict[str, list[Outcome]]


@pytest.fixture(scope="module")
def curve() -> ModuleType:
    """The script that draws the curve."""
    spec = importlib.util.spec_from_file_location("wire_real_curve", KEPT / "curve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept(curve: ModuleType) -> Kept:
    """By file and arm, as `read/latents`."""
    outcomes: Kept = curve.outcomes()
    return outcomes


def _row(name: str) -> list[str]:
    (found,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def _seeds(kept: Kept, arm: str) -> dict[str, list[Outcome]]:
    return {seed: kept[f"{seed}/{arm}"] for seed in SEEDS}


def _closed(kept: Kept, yardstick: str, metric: str) -> list[Any]:
    def chosen(outcomes: list[Outcome]) -> list[Outcome]:
        return [replace(each, metrics={metric: each.metrics[metric]}) for each in outcomes]

    latents: BySeed = {seed: chosen(own) for seed, own in _seeds(kept, "latents").items()}
    alone = {name: {"": chosen(kept[ALONE[name]])} for name in ("none", yardstick)}
    ratio = PooledArms.of({"latents": latents, **alone}).ratio(
        {"latents": 1, "none": -1}, {yardstick: 1, "none": -1}
    )
    return near(ratio.value, ratio.low, ratio.high)


@pytest.mark.parametrize("arm", ["latents", "deranged"])
def test_every_mean_over_seeds_follows_from_the_outcomes(arm: str, kept: Kept) -> None:
    exact, f1, nll, first = _row(f"{arm}, 4 : 1, mean of three seeds")
    seeds = _seeds(kept, arm)
    for cell, metric in ((exact, "exact_match"), (f1, "f1")):
        found = estimate_pooled(seeds, metric)
        assert numbers(cell) == near(found.value, found.low, found.high)
    assert float(nll) == pytest.approx(estimate_pooled(seeds, "nll").value, abs=0.006)
    assert float(first) == pytest.approx(estimate_pooled(seeds, "first_token_top1").value, abs=0.0006)
    if arm == "latents":
        assert estimate_pooled(seeds, "f1").spread == pytest.approx(0.006, abs=0.0005)


@pytest.mark.parametrize("other", [*list(ALONE)[1:], "deranged"])
def test_every_difference_over_seeds_follows_from_the_outcomes(other: str, kept: Kept) -> None:
    against = _seeds(kept, "deranged") if other == "deranged" else {"": kept[ALONE[other]]}
    found = compare_pooled(_seeds(kept, "latents"), against, "f1")
    assert numbers(_row(f"4 : 1, three seeds, minus {other}")[0]) == near(found.difference, found.low, found.high)


def test_a_wrong_message_misleads_over_seeds(kept: Kept) -> None:
    found = compare_pooled(_seeds(kept, "deranged"), {"": kept["untrained/none"]}, "f1")
    cell = numbers(_row("deranged minus none, 4 : 1, three seeds")[0])
    assert cell == near(found.difference, found.low, found.high)
    assert found.high < -0.02  # the aim was within 0.02


def test_the_gap_closed_over_seeds_follows_from_the_outcomes(kept: Kept) -> None:
    cells = _row("4 : 1, three seeds")
    for cell, yardstick in zip(cells, YARDSTICKS, strict=True):
        assert numbers(cell) == _closed(kept, yardstick, "f1")
        assert cell in PAGE.split("\nStudy: ")[0]
    exact = PROSE.split("the three seeds at 4 : 1 close 0.769 ")[1].split("]")[0]
    assert [0.769, *numbers(exact)] == _closed(kept, YARDSTICKS[1], "exact_match")


def test_the_first_paragraph_says_by_how_much_each_aim_is_missed() -> None:
    first = " ".join(PAGE.split("\nStudy: ")[0].split())
    for row, aim in (("4 : 1, three seeds", 0.95), ("8 : 1", 0.90), ("16 : 1", 0.75)):
        low = numbers(_row(row)[1])[1]
        assert f"{low:.3f} at {row.split(',')[0]} (aim {aim:.2f}, short by {aim - low:.3f})" in first
    assert f"4 : 1 is short by {0.95 - numbers(_row('4 : 1, three seeds')[0])[1]:.3f}" in first
    assert _row("latents, 4 : 1, mean of three seeds")[1] in first


def test_the_curve_draws_what_the_tables_say(curve: ModuleType, kept: Kept) -> None:
    points = curve.points(kept)
    rows = {
        "latents": ("latents, 4 : 1, mean of three seeds", "latents, 8 : 1", "latents, 16 : 1"),
        "evict": [f"`evict,ratio={ratio}`" for ratio in curve.RATIOS],
        "budget": [f"`budget,ratio={ratio}`" for ratio in curve.RATIOS],
    }
    for name, found in points.items():
        cells = [numbers(_row(row)[1]) for row in rows[name]]
        assert cells == [near(each.value, each.low, each.high) for each in found]
    four, eight, sixteen = (each.value for each in points["latents"])
    assert f"{four - eight:.3f} from 4 : 1 to 8 : 1 and {eight - sixteen:.3f} from there" in PROSE


def test_the_trainings_of_the_third_session_went_as_the_page_says() -> None:
    seconds, peaks = [], []
    for name in ("seed1", "seed2", "sixteen"):
        text = (KEPT / f"training-{name}.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
        assert min(losses, key=losses.__getitem__) == 600
        assert lines[-1]["tokens"] == pytest.approx(3.5e6, abs=0.05e6)
        seconds.append(round(lines[-1]["seconds"]))
        peaks.append(round(max(line.get("memory_gib", 0.0) for line in lines), 1))
    shown = ", ".join(f"{losses[step]:.2f}" for step in (250, 500, 600))
    assert f"16 : 1: {shown} at steps" in PROSE
    assert f"{min(seconds)} to {max(seconds)} s, with {min(peaks)} to {max(peaks)} GiB" in PROSE


def test_the_costs_on_paper_are_those_that_the_command_wrote() -> None:
    written = json.loads((KEPT / "scale.json").read_text(encoding="utf-8"))
    for name, steps in (
        ("3.5 million, the recipe as it is", "600"),
        ("35 million", "6,000"),
        ("2.6 billion", "446,000"),
    ):
        found = written[f"8b, {steps} steps"]
        told, *cells = _row(name)
        assert told == steps
        assert found["wire"]["units"] == int(steps.replace(",", ""))
        for cell, unit in zip(cells, ("hours", "dollars"), strict=True):
            expected = [found["h200"][unit][case] for case in ("base", "optimistic", "pessimistic")]
            assert numbers(cell) == [pytest.approx(each, abs=0.5 if each > 100 else 0.005) for each in expected]
        assert found["h200"]["memory_gib"] == pytest.approx(88.4, abs=0.05)
        assert not any(found["others"].values())
    small = written["0.5b, 600 steps"]
    assert 60 * small["h200"]["hours"]["base"] - 15 == pytest.approx(3.3, abs=0.05)
    assert small["h200"]["memory_gib"] == pytest.approx(16.3, abs=0.05)

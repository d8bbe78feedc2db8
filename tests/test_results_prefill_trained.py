"""What docs/results/prefill-real.md says of finetuned models and of rounding follows from what is kept."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml

from latentwire.evaluation.combinations import Combination
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.pooled import BySeed, PooledArms, compare_pooled, estimate_pooled
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import Comparison, compare
from latentwire.studies.claims import Effects
from latentwire.studies.derived import derive
from tests.support.prefill_results import (
    ALL,
    ERRORS,
    KEPT,
    Kept,
    differing,
    is_difference,
    mean,
    of_task,
    read_kept,
    rows,
    says,
)
from tests.support.result_cells import near, numbers

SEEDS = ("0", "1", "2")
STAGES = {
    "untouched, causally": "baseline",
    "untouched, bidirectionally": "ablated",
    "causally, causally": "plain_after_causal_ft",
    "causally, bidirectionally": "masked_after_causal_ft",
    "bidirectionally, causally": "plain_after_prefix_ft",
    "bidirectionally, bidirectionally": "masked_after_prefix_ft",
}
TRAINED = tuple(stage for stage in STAGES.values() if "after" in stage)
PRIMARY = {
    "damage: untouched, bidirectional minus causal": ("ablated", "baseline"),
    "under the mask: bidirectional minus causal finetuning": ("masked_after_prefix_ft", "masked_after_causal_ft"),
    "each under its own mask: bidirectional minus causal finetuning": (
        "masked_after_prefix_ft",
        "plain_after_causal_ft",
    ),
    "read causally: bidirectional minus causal finetuning": ("plain_after_prefix_ft", "plain_after_causal_ft"),
}
EXPLORATORY = {
    "after causal finetuning: bidirectional minus causal reading": (
        "masked_after_causal_ft",
        "plain_after_causal_ft",
    ),
    "after bidirectional finetuning: bidirectional minus causal reading": (
        "masked_after_prefix_ft",
        "plain_after_prefix_ft",
    ),
    "bidirectional reading: causal finetuning minus untouched": ("masked_after_causal_ft", "ablated"),
}
EFFECTS = {
    "damage": "damage",
    "retention": "retention",
    "recovery": "recovery",
    "side effect on causal reading": "side_effect",
    "interaction": "mask_interaction",
}
READINGS = {
    "untouched, bidirectional": "ablated",
    "causal finetuning, causal": "plain_after_causal_ft",
    "causal finetuning, bidirectional": "masked_after_causal_ft",
    "bidirectional finetuning, causal": "plain_after_prefix_ft",
    "bidirectional finetuning, bidirectional": "masked_after_prefix_ft",
}
HEADING = "The 2 × 2: SmolLM2-135M, three seeds"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """SmolLM2's outcomes by `stage/arm`; `again` is a second reading of the untouched model."""
    folder = tmp_path_factory.mktemp("outcomes")
    untouched = ("baseline", "again", "ablated", "beside", "layers")
    return read_kept("smollm2-135m", folder, untouched) | read_kept("smollm2-135m", folder, TRAINED, SEEDS)


@pytest.fixture(scope="module")
def readings(kept: Kept) -> dict[str, BySeed]:
    """Each `stage/arm` of the 2 x 2 by seed."""
    found: dict[str, BySeed] = {}
    for stage in STAGES.values():
        for arm in ("text", "none"):
            seeds = {seed: kept[f"{stage}-seed{seed}/{arm}"] for seed in SEEDS} if stage in TRAINED else None
            found[f"{stage}/{arm}"] = seeds or {"": kept[f"{stage}/{arm}"]}
    return found


def _task(reading: BySeed, task: str = "xquad") -> dict[str, list[Outcome]]:
    return {seed: of_task(own, task) for seed, own in reading.items()}


def _means(reading: BySeed, metric: str) -> list[float]:
    return [mean(own, metric) for own in reading.values()]


def _is_estimate(cell: str, reading: BySeed, metric: str) -> None:
    found = estimate_pooled(reading, metric)
    assert numbers(cell) == near(found.value, found.low, found.high)


def _signed(found: Comparison) -> str:
    value, low, high = (f"{round(each, 3) + 0.0:+.3f}" for each in (found.difference, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _is_rounded(cell: str, found: Combination) -> None:
    """A cell of two or three decimals; how bounds are computed may change their last digit."""
    decimals = len(cell.split(" ")[0].partition(".")[2])
    unit = 10.0**-decimals
    value, *ends = numbers(cell)
    assert value == pytest.approx(found.value, abs=0.6 * unit)
    assert ends == [pytest.approx(each, abs=0.005 + 1.1 * unit) for each in (found.low, found.high)]


def test_every_score_of_the_2_x_2_follows_from_its_outcomes(readings: dict[str, BySeed]) -> None:
    found = rows(HEADING)
    assert [f"{row[0]}, {row[1]}" for row in found] == list(STAGES)
    for finetuned, read, exact, f1, by_seed, nll, first, blind in found:
        stage = STAGES[f"{finetuned}, {read}"]
        own = _task(readings[f"{stage}/text"])
        assert all(len(each) == ALL for each in own.values())
        _is_estimate(exact, own, "exact_match")
        _is_estimate(f1, own, "f1")
        if stage in TRAINED:
            assert numbers(by_seed) == [pytest.approx(each, abs=0.0006) for each in _means(own, "f1")]
        assert float(nll) == pytest.approx(np.mean(_means(own, "nll")), abs=0.006)
        assert float(first) == pytest.approx(np.mean(_means(own, "first_token_top1")), abs=0.0006)
        blank = _means(_task(readings[f"{stage}/none"]), "f1")
        assert float(blind) == pytest.approx(np.mean(blank), abs=0.0006)


def test_every_difference_of_the_2_x_2_follows_from_the_outcomes(readings: dict[str, BySeed]) -> None:
    pairs = PRIMARY | EXPLORATORY
    found = {row[0].replace("**", ""): row[1:] for row in rows(HEADING, table=1)}
    assert list(found) == list(pairs)
    texts = {name: tuple(_task(readings[f"{stage}/text"]) for stage in pairs[name]) for name in pairs}
    differences = {name: compare_pooled(one, other, "f1") for name, (one, other) in texts.items()}
    corrected = dict(zip(PRIMARY, holm([differences[name].p for name in PRIMARY]), strict=True))
    for name, (f1, by_seed, p, exact, nll) in found.items():
        one, other = texts[name]
        is_difference(f1, differences[name])
        is_difference(exact, compare_pooled(one, other, "exact_match"))
        loss = compare_pooled(one, other, "nll")
        assert numbers(nll) == [pytest.approx(each, abs=0.0151) for each in (loss.difference, loss.low, loss.high)]
        if len(one) > 1:
            each_seed = np.subtract(_means(one, "f1"), _means(other, "f1"))
            assert numbers(by_seed) == [pytest.approx(each, abs=0.0006) for each in each_seed]
        assert (float(p) if p else None) == (pytest.approx(corrected[name], abs=0.0006) if p else None)
        assert bool(p) == (name in PRIMARY)


def test_under_their_own_masks_neither_a_difference_nor_equality_is_shown(readings: dict[str, BySeed]) -> None:
    pair = PRIMARY["each under its own mask: bidirectional minus causal finetuning"]
    one, other = (_task(readings[f"{stage}/text"]) for stage in pair)
    found = compare_pooled(one, other, "f1")
    assert not found.resolved
    assert not found.equal
    alone = [compare(one[seed], other[seed], "f1") for seed in SEEDS]
    assert [each.difference > 0 for each in alone] == [False, True, False]
    assert not any(each.resolved for each in alone)
    spreads = [estimate_pooled(each, "f1").spread for each in (one, other)]
    says(f"{_signed(found)} over three seeds and {found.groups} passages")
    says("spreads by {:.3f} between seeds (standard deviation), the causal one by {:.3f}".format(*spreads))


def test_every_effect_follows_from_the_outcomes(readings: dict[str, BySeed]) -> None:
    study = yaml.safe_load((KEPT / "study.yaml").read_text(encoding="utf-8"))
    derived = {
        (each.effect, each.of): each for each in derive(Effects(**study["effects"]), ["xquad"], readings, {})
    }
    found = rows(HEADING, table=2)
    assert len(found) == 9
    for effect, of, _, raw, above in found:
        one = derived[EFFECTS[effect], f"{READINGS[of]}/text"]  # type: ignore[index]
        _is_rounded(raw, one.raw)
        _is_rounded(above, one.above_floor)


def test_what_is_kept_of_the_worth_of_a_passage_follows_from_the_outcomes(readings: dict[str, BySeed]) -> None:
    stages = [stage for stage in STAGES.values() if stage in TRAINED]
    scores = {
        f"{stage}/{arm}": {
            seed: [Outcome(**{**vars(each), "metrics": {"f1": each.metrics["f1"]}}) for each in own]
            for seed, own in _task(readings[f"{stage}/{arm}"]).items()
        }
        for stage in stages
        for arm in ("text", "none")
    }
    arms = PooledArms.of(scores)

    def worth(stage: str) -> dict[str, float]:
        return {f"{stage}/text": 1, f"{stage}/none": -1}

    causal = worth("plain_after_causal_ft")
    kept = [arms.ratio(worth(stage), causal) for stage in ("masked_after_prefix_ft", "plain_after_prefix_ft")]
    kept.append(arms.ratio(worth("masked_after_causal_ft"), causal))
    own, under = "plain_after_causal_ft/text", "masked_after_causal_ft/text"
    kept.append(arms.ratio({"masked_after_prefix_ft/text": 1, under: -1}, {own: 1, under: -1}))
    said = [_two_places(each) for each in kept]
    says(
        f"the bidirectional finetuning keeps {said[0]}",
        f"keeps {said[1]} of what the passage is worth there",
        f"causal weights read bidirectionally keep {said[2]}",
        f"closes {said[3]} of that gap",
    )


def _two_places(found: Combination) -> str:
    assert found.value is not None
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def test_every_kind_of_answer_is_counted_over_the_seeds(readings: dict[str, BySeed]) -> None:
    for name, *counts in rows("What the answers are"):
        own = _task(readings[f"{STAGES[name]}/text"])
        for count, error in zip(counts, ERRORS, strict=True):
            assert int(count) == round(np.mean([sum(o.error == error for o in each) for each in own.values()]))
    long = [
        [sum(len(each.prediction) > 150 for each in own) for own in _task(readings[f"{stage}/text"]).values()]
        for stage in ("masked_after_causal_ft", "plain_after_causal_ft")
    ]
    (low, high), (few, more) = [(min(each), max(each)) for each in long]
    says(f"{low} to {high} answers have more than 150 characters, {few} to {more} when it reads causally")


def test_every_number_of_choices_after_finetuning_follows_from_the_outcomes(readings: dict[str, BySeed]) -> None:
    heading = "PIQA and OpenBookQA after finetuning"
    for name, *cells in rows(heading):
        for task, (accuracy, by_length, nll) in zip(("piqa", "openbookqa"), (cells[:3], cells[3:]), strict=True):
            own = _task(readings[f"{STAGES[name]}/text"], task)
            _is_estimate(accuracy, own, "acc")
            assert float(by_length) == pytest.approx(np.mean(_means(own, "acc_norm")), abs=0.0006)
            assert float(nll) == pytest.approx(np.mean(_means(own, "nll")), abs=0.006)
    for name, *cells in rows(heading, table=1):
        for task, cell in zip(("piqa", "openbookqa"), cells, strict=True):
            one, other = (_task(readings[f"{stage}/text"], task) for stage in (PRIMARY | EXPLORATORY)[name])
            found = compare_pooled(one, other, "acc")
            is_difference(cell, found)
            assert found.equal or not name.startswith("each under its own mask")


def test_every_number_of_the_trainings_follows_from_their_diagnostics() -> None:
    read, tokens = {}, {}
    for name, *cells, step in rows("The six trainings"):
        mask, _, seed = name.partition(", ")
        file = KEPT / "trainings" / f"{'prefix' if mask == 'bidirectional' else mask}-seed{seed}.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        at = {line["step"]: line for line in lines if "eval_loss" in line}
        expected = [at[each]["eval_loss"] for each in (0, 150, 300)]
        rights = [at[each]["eval_first_token_accuracy"] for each in (0, 150, 300)]
        assert [float(cell) for cell in cells] == [pytest.approx(each, abs=0.0006) for each in expected + rights]
        assert rights == sorted(rights)
        best = min(at, key=lambda each: at[each]["eval_loss"])
        assert int(step) == best
        read[mask, seed], tokens[mask, seed] = at[best]["eval_loss"], lines[-1]["tokens"]
    gaps = [read["bidirectional", seed] - read["causal", seed] for seed in SEEDS]
    says(f"{min(gaps):.3f} to {max(gaps):.3f} in loss at the steps that were read")
    # Both masks see the same rows.
    assert all(tokens["bidirectional", seed] == tokens["causal", seed] for seed in SEEDS)
    assert {round(each / 1e6, 1) for each in tokens.values()} == {4.9}


def test_the_samples_are_every_119th_answer(kept: Kept) -> None:
    stages = ["ablated", *(f"{stage}-seed0" for stage in TRAINED)]
    columns = [of_task(kept[f"{stage}/text"], "xquad")[::119] for stage in stages]
    shown = [row[2:] for row in rows("Ten questions, every 119th of the file, seed 0")]
    assert shown == [[own.prediction or "(nothing)" for own in row] for row in zip(*columns, strict=True)]


def test_two_readings_of_one_model_in_bf16_differ_as_said(kept: Kept) -> None:
    for name, answers, metric, first, second, difference, by_question in rows("How much two bf16 runs differ"):
        arm, task = name.replace("`", "").split(", ")
        one, other = (of_task(kept[f"{stage}/{arm}"], task) for stage in ("baseline", "again"))
        assert answers == f"{differing(one, other)} of {len(one):,}"
        assert [float(first), float(second)] == [pytest.approx(mean(e, metric), abs=0.0006) for e in (one, other)]
        is_difference(difference, compare(other, one, metric))
        nats = {each.id: each.metrics["nll"] for each in other}
        moved = np.mean([abs(each.metrics["nll"] - nats[each.id]) for each in one])
        assert float(by_question) == pytest.approx(moved, abs=0.0006)


def test_rounding_alone_passes_for_a_resolved_difference(kept: Kept) -> None:
    one, other = (of_task(kept[f"{stage}/text"], "xquad") for stage in ("baseline", "again"))
    found = compare(other, one, "f1")
    assert found.resolved
    became = {each.id: each.error is None for each in other}
    gained = sum(each.error is not None and became[each.id] for each in one)
    lost = sum(each.error is None and not became[each.id] for each in one)
    says(f"{gained} answers become exactly right and {lost} cease to be", f"p {found.p:.3f}")
    damage = compare(of_task(kept["ablated/text"], "xquad"), other, "f1")
    says(f"against the second one the damage is {_signed(damage)}")
    repeat = compare(of_task(kept["beside/repeat"], "xquad"), other, "f1")
    says(_signed(repeat))
    swept = kept["layers/text"]
    says(
        f"{differing(swept, other)} answers of `text` differ from the second run's, "
        f"{differing(swept, one)} from the first run's"
    )


def test_the_picture_shows_the_scores_of_the_page() -> None:
    picture = (KEPT / "crossed.svg").read_text(encoding="utf-8")
    values = re.findall(r'class="value"[^>]*>([0-9.]+)<', picture)
    assert values == [row[3].split(" ")[0] for row in rows(HEADING)]

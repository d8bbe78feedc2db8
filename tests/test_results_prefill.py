"""What docs/results/prefill-real.md says of untouched models follows from the outcomes kept beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from latentwire.evaluation.combinations import PairedArms
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import compare
from tests.support.prefill_results import (
    ALL,
    ERRORS,
    KEPT,
    PAGE,
    Kept,
    differing,
    is_difference,
    is_share,
    mean,
    of_task,
    read_kept,
    rows,
    says,
)
from tests.support.result_cells import numbers

MODELS = {
    "SmolLM2-135M": "smollm2-135m",
    "Gemma 3 270M": "gemma3-270m",
    "Qwen2.5-Coder-0.5B": "qwen-0.5b",
    "Qwen2.5-Coder-1.5B": "qwen-1.5b",
}
COLUMNS = list(enumerate(MODELS.values(), start=1))
ARMS = {
    "`text`": "baseline/text",
    "`none`": "baseline/none",
    "`text,mask=prefix`": "ablated/text",
    "`none,mask=prefix`": "ablated/none",
    "`repeat`": "beside/repeat",
    "`leaky` (LEAKS)": "beside/leaky",
}
DIFFERENCES = {
    "bidirectional minus causal": ("ablated/text", "baseline/text"),
    "bidirectional minus `none`": ("ablated/text", "baseline/none"),
    "bidirectional minus `none,mask=prefix`": ("ablated/text", "ablated/none"),
    "`none,mask=prefix` minus `none`": ("ablated/none", "baseline/none"),
    "`repeat` minus `text`": ("beside/repeat", "baseline/text"),
    "`text` minus `none`": ("baseline/text", "baseline/none"),
}
UNTOUCHED = ("baseline", "ablated", "beside", "layers")
SWEPT = ("qwen-0.5b", "smollm2-135m")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kept]:
    """By model, the outcomes of each `stage/arm`."""
    return {model: read_kept(model, tmp_path_factory.mktemp(model), UNTOUCHED) for model in MODELS.values()}


@pytest.mark.parametrize("model", MODELS)
def test_every_score_on_xquad_follows_from_its_outcomes(model: str, kept: dict[str, Kept]) -> None:
    found = [row[1:] for row in rows("Untouched models") if row[0] == model]
    assert [row[0] for row in found] == list(ARMS)
    for name, exact, f1, nll, first, unreadable in found:
        own = of_task(kept[MODELS[model]][ARMS[name]], "xquad")
        assert len(own) == ALL
        is_share(exact, own, "exact_match")
        is_share(f1, own, "f1")
        assert float(nll) == pytest.approx(mean(own, "nll"), abs=0.006)
        assert float(first) == pytest.approx(mean(own, "first_token_top1"), abs=0.0006)
        share = sum(outcome.error == "unreadable" for outcome in own) / len(own)
        assert float(unreadable) == pytest.approx(share, abs=0.0006)


@pytest.mark.parametrize(("column", "model"), COLUMNS)
def test_every_difference_in_f1_follows_from_the_outcomes(column: int, model: str, kept: dict[str, Kept]) -> None:
    *found, left = rows("Differences in F1")
    for row in found:
        one, other = (of_task(kept[model][name], "xquad") for name in DIFFERENCES[row[0]])
        difference = compare(one, other, "f1")
        is_difference(row[column], difference)
        if row[0] == "bidirectional minus causal":
            assert len(MODELS) * difference.p < 0.00041
    scores = {
        name: [replace(each, metrics={"f1": each.metrics["f1"]}) for each in of_task(kept[model][arm], "xquad")]
        for name, arm in {"masked": "ablated/text", "text": "baseline/text", "none": "baseline/none"}.items()
    }
    ratio = PairedArms.of(scores).ratio({"masked": 1, "none": -1}, {"text": 1, "none": -1})
    assert numbers(left[column]) == [pytest.approx(end, abs=0.006) for end in vars(ratio).values()]


def test_every_kind_of_answer_is_counted_from_the_outcomes(kept: dict[str, Kept]) -> None:
    found = rows("Kinds of answers")
    assert len(found) == 2 * len(MODELS)
    for name, *counts in found:
        model, _, mask = name.rpartition(", ")
        stage = {"causal": "baseline/text", "bidirectional": "ablated/text"}[mask]
        own = of_task(kept[MODELS[model]][stage], "xquad")
        assert list(map(int, counts)) == [sum(each.error == error for each in own) for error in ERRORS]
    said = [each.prediction for each in of_task(kept["smollm2-135m"]["ablated/text"], "xquad") if each.prediction]
    assert (len(said), sum(each.startswith("You are a helpful") for each in said)) == (400, 110)


def test_the_largest_model_says_words_twice(kept: dict[str, Kept]) -> None:
    doubled = [
        sum(bool(re.search(r"\b(\w+)\W+\1\b", each.prediction.lower())) for each in of_task(own, "xquad"))
        for own in (kept["qwen-1.5b"]["ablated/text"], kept["qwen-1.5b"]["baseline/text"])
    ]
    says(f"{doubled[0]} have the same word twice in a row, {doubled[1]} causally")


@pytest.mark.parametrize(("at", "model"), list(enumerate(SWEPT)))
def test_every_number_of_the_sweep_over_layers_follows_from_its_outcomes(
    at: int, model: str, kept: dict[str, Kept]
) -> None:
    arms = {name.removeprefix("layers/"): own for name, own in kept[model].items() if "layers/" in name}
    swept = {row[0].replace(" ", "_"): row[3 + 5 * at : 7 + 5 * at] for row in rows("Which layers do the damage")}
    assert set(swept) | {"text", "none"} == set(arms)
    found = {name: compare(arms[name], arms["text"], "f1") for name in swept}
    corrected = dict(zip(found, holm([each.p for each in found.values()]), strict=True))
    for name, (difference, p, nll, same) in swept.items():
        own = arms[name]
        assert len(own) == 500
        is_difference(difference, found[name])
        assert float(p) == pytest.approx(corrected[name], abs=0.0006)
        assert float(nll) == pytest.approx(mean(own, "nll"), abs=0.006)
        assert int(same) == 500 - differing(own, arms["text"])
    expected = {"last_quarter", "first_layer", "middle_layer", "last_layer"}
    expected |= {"third_quarter", "last_half"} if model == "qwen-0.5b" else set()
    assert {name for name, each in found.items() if each.equal} == expected
    text, none = (mean(arms[name], "f1") for name in ("text", "none"))
    assert [f"{text:.3f}", f"{none:.3f}"] == [["0.573", "0.055"], ["0.175", "0.030"]][at]


def test_what_layers_add_to_others_follows_from_the_outcomes(kept: dict[str, Kept]) -> None:
    arms = {name.removeprefix("layers/"): own for name, own in kept["qwen-0.5b"].items()}
    second = compare(arms["first_half"], arms["first_quarter"], "f1").difference
    last = compare(arms["all"], arms["first_half"], "f1").difference
    says(f"the second costs {-second:.3f} more where the first is bidirectional already")
    says(f"and the last half {-last:.3f} more where the first is")


def test_the_mask_cannot_matter_in_the_last_layer_nor_to_a_prompt_of_one_token(kept: dict[str, Kept]) -> None:
    for model in SWEPT:
        assert _unnamed(kept[model]["layers/last_layer"]) == _unnamed(kept[model]["layers/text"])
    gemma = kept["gemma3-270m"]
    for task in ("piqa", "openbookqa"):
        assert _unnamed(of_task(gemma["ablated/none"], task)) == _unnamed(of_task(gemma["baseline/none"], task))


def test_what_is_generated_has_no_label_to_look_at(kept: dict[str, Kept]) -> None:
    said = {
        model: differing(of_task(arms["beside/leaky"], "xquad"), of_task(arms["ablated/text"], "xquad"))
        for model, arms in kept.items()
    }
    # Qwen 0.5B was read in two runs, and the 1.5B's two arms in other batches.
    assert said == {"smollm2-135m": 0, "gemma3-270m": 0, "qwen-0.5b": 71, "qwen-1.5b": 13}


@pytest.mark.parametrize(("column", "model"), COLUMNS)
def test_every_number_of_choices_follows_from_its_outcomes(column: int, model: str, kept: dict[str, Kept]) -> None:
    for row in rows("PIQA and OpenBookQA, untouched"):
        task, _, name = row[0].partition(", ")
        own = of_task(kept[model][ARMS[name]], task.lower())
        assert len(own) == 500
        is_share(row[column], own, "acc")
    for row in rows("PIQA and OpenBookQA, untouched", table=1):
        task, _, name = row[0].partition(", ")
        one, other = (of_task(kept[model][arm], task.lower()) for arm in DIFFERENCES[name])
        is_difference(row[column], compare(one, other, "acc"))


def test_choices_by_length_are_in_the_range_said(kept: dict[str, Kept]) -> None:
    shares = [mean(of_task(kept[m][arm], "openbookqa"), "acc_norm") for m in kept for arm in ARMS.values()]
    says(f"divided by characters it is {min(shares):.2f} to {max(shares):.2f}")


def test_every_number_of_the_learning_rates_follows_from_the_diagnostics() -> None:
    found = rows("The learning rate")
    assert len(found) == 6
    means: dict[str, float] = {}
    for wire, rate, *cells in found:
        file = f"{'prefix' if 'mask' in wire else 'causal'}-{float(rate)}.jsonl"
        lines = [json.loads(line) for line in (KEPT / "rates" / file).read_text(encoding="utf-8").splitlines()]
        at = {line["step"]: line for line in lines if "eval_loss" in line}
        expected = [at[step]["eval_loss"] for step in (0, 50, 100)]
        for name in ("eval_first_token_accuracy", "eval_exact_match", "eval_f1"):
            expected += [at[0][name], at[100][name]]
        assert [float(cell) for cell in cells] == [pytest.approx(each, abs=0.0006) for each in expected]
        means[rate] = means.get(rate, 0.0) + at[100]["eval_loss"] / 2
    assert f"{min(means, key=means.__getitem__)} ({means['1e-4']:.3f}; 3e-5 has {means['3e-5']:.3f}" in PAGE


def _unnamed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes whatever their arm is called."""
    return [replace(outcome, arm="") for outcome in outcomes]

"""The tables of docs/results/prefill-real.md follow from the outcomes kept beside it."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from latentwire.evaluation.combinations import PairedArms
from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import Comparison, compare, estimate
from latentwire.evaluation.summarize import by_arm
from tests.support.result_cells import near, numbers

RESULTS = Path(__file__).parent.parent / "docs" / "results"
KEPT = RESULTS / "prefill-real"
PAGE = (RESULTS / "prefill-real.md").read_text(encoding="utf-8").replace("−", "-")
MODELS = {
    "SmolLM2-135M-Instruct": "smollm2-135m",
    "Gemma 3 270M": "gemma3-270m",
    "Qwen2.5-Coder-0.5B-Instruct": "qwen-0.5b",
}
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
    "`leaky` minus `text`": ("beside/leaky", "baseline/text"),
    "`text` minus `none`": ("baseline/text", "baseline/none"),
}
ERRORS = (None, "wrong boundary", "wrong relation", "not in the passage", "unreadable")
SINGLE = {"0": "first_layer", "12": "middle_layer", "23": "last_layer"}
RANGES = {
    "0-5": "first_quarter",
    "6-11": "second_quarter",
    "12-17": "third_quarter",
    "18-23": "last_quarter",
    "0-11": "first_half",
    "12-23": "last_half",
    "6-23": "all_but_the_first_quarter",
    "0-17": "all_but_the_last_quarter",
    "0-23": "all",
}
SWEPT = SINGLE | RANGES
TOGETHER = {
    ("second quarter", "first quarter"): "first_half",
    ("third quarter", "first half"): "all_but_the_last_quarter",
    ("last quarter", "first three quarters"): "all",
    ("first quarter", "last three quarters"): "all",
    ("first half", "last half"): "all",
    ("last half", "second quarter"): "all_but_the_first_quarter",
    ("last half", "first half"): "all",
}
ALONE = {"first three quarters": "all_but_the_last_quarter", "last three quarters": "all_but_the_first_quarter"}
Kept = dict[str, list[Outcome]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kept]:
    """By model, and for the sweep over layers, the outcomes of each `stage/arm`."""
    folder = tmp_path_factory.mktemp("outcomes")
    models: dict[str, Kept] = {}
    for file in sorted(KEPT.glob("*.jsonl.xz")):
        model, stage = file.name.removesuffix(".jsonl.xz").rsplit(".", 1)
        path = folder / file.stem
        path.write_bytes(lzma.decompress(file.read_bytes()))
        arms = {f"{stage}/{arm}": own for arm, own in by_arm(read_outcomes(path)).items()}
        models[model] = models.get(model, {}) | arms
    return models


def _rows(heading: str, table: int = 0) -> list[list[str]]:
    """The cells of a table below a heading, without its head."""
    section = PAGE.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[table]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]


def _of(outcomes: Sequence[Outcome], task: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.task == task]


def _is_share(cell: str, outcomes: Sequence[Outcome], metric: str) -> None:
    found = estimate(outcomes, metric)
    assert numbers(cell) == near(found.value, found.low, found.high)


def _is_difference(cell: str, found: Comparison) -> None:
    assert numbers(cell) == near(found.difference, found.low, found.high)


def _mean(outcomes: Sequence[Outcome], metric: str) -> float:
    return sum(outcome.metrics[metric] for outcome in outcomes) / len(outcomes)


@pytest.mark.parametrize("model", MODELS)
def test_every_score_on_xquad_follows_from_its_outcomes(model: str, kept: dict[str, Kept]) -> None:
    heading = f"{model}, a base model" if model.startswith("Gemma") else model
    rows = _rows(heading)
    assert {ARMS[row[0]] for row in rows} == {arm for arm in kept[MODELS[model]] if not arm.startswith("layers")}
    for name, exact, f1, nll, first, unreadable in rows:
        own = _of(kept[MODELS[model]][ARMS[name]], "xquad")
        assert len(own) == 1190
        _is_share(exact, own, "exact_match")
        _is_share(f1, own, "f1")
        assert float(nll) == pytest.approx(_mean(own, "nll"), abs=0.006)
        assert float(first) == pytest.approx(_mean(own, "first_token_top1"), abs=0.0006)
        share = sum(outcome.error == "unreadable" for outcome in own) / len(own)
        assert float(unreadable) == pytest.approx(share, abs=0.0006)


@pytest.mark.parametrize(("column", "model"), list(enumerate(MODELS.values(), start=1)))
def test_every_difference_in_f1_follows_from_the_outcomes(column: int, model: str, kept: dict[str, Kept]) -> None:
    *rows, left = _rows("Differences in F1")
    for row in rows:
        names = DIFFERENCES[row[0]]
        if not set(names) <= kept[model].keys():
            assert row[column] == "not run"
            continue
        one, other = (_of(kept[model][name], "xquad") for name in names)
        found = compare(one, other, "f1")
        _is_difference(row[column], found)
        if row[0] == "bidirectional minus causal":
            assert 3 * found.p < 0.00031
    scores = {
        name: [replace(each, metrics={"f1": each.metrics["f1"]}) for each in _of(kept[model][arm], "xquad")]
        for name, arm in {"masked": "ablated/text", "text": "baseline/text", "none": "baseline/none"}.items()
    }
    ratio = PairedArms.of(scores).ratio({"masked": 1, "none": -1}, {"text": 1, "none": -1})
    assert numbers(left[column]) == [pytest.approx(end, abs=0.006) for end in vars(ratio).values()]


def test_every_kind_of_answer_is_counted_from_the_outcomes(kept: dict[str, Kept]) -> None:
    rows = _rows("What the answers are")
    assert len(rows) == 6
    for name, *counts in rows:
        model, _, mask = name.rpartition(", ")
        own = _of(kept[MODELS[model]][{"causal": "baseline/text", "bidirectional": "ablated/text"}[mask]], "xquad")
        assert list(map(int, counts)) == [sum(each.error == error for each in own) for error in ERRORS]
    said = [each.prediction for each in _of(kept["smollm2-135m"]["ablated/text"], "xquad") if each.prediction]
    assert (len(said), sum(each.startswith("You are a helpful") for each in said)) == (400, 110)


def test_every_number_of_the_sweep_over_layers_follows_from_its_outcomes(kept: dict[str, Kept]) -> None:
    arms = {name.removeprefix("layers/"): own for name, own in kept["qwen-0.5b"].items() if "layers/" in name}
    first, *swept, last = _rows("Which layers do the damage")
    assert [row[0] for row in swept] == list(SWEPT)
    found = {row[0]: compare(arms[SWEPT[row[0]]], arms["text"], "f1") for row in swept}
    corrected = dict(zip(found, holm([each.p for each in found.values()]), strict=True))
    for name, _, exact, f1, difference, p, nll, same in (first, *swept, last):
        own = arms[SWEPT.get(name, "none" if name == last[0] else "text")]
        assert len(own) == 500
        _is_share(exact, own, "exact_match")
        _is_share(f1, own, "f1")
        assert float(nll) == pytest.approx(_mean(own, "nll"), abs=0.006)
        if name in found:
            _is_difference(difference, found[name])
            assert float(p) == pytest.approx(corrected[name], abs=0.0006)
            pairs = zip(own, arms["text"], strict=True)
            assert int(same) == sum(one.prediction == other.prediction for one, other in pairs)
    equal = {SWEPT[name] for name, each in found.items() if each.equal}
    assert equal == {"third_quarter", "last_quarter", "last_half", *SINGLE.values()}


def test_what_layers_add_to_others_follows_from_the_outcomes(kept: dict[str, Kept]) -> None:
    arms = kept["qwen-0.5b"]
    rows = _rows("Which layers do the damage", table=1)
    pairs = [tuple(name.removeprefix("the ") for name in row[:2]) for row in rows]
    assert pairs == list(TOGETHER)
    for (added, to), row in zip(TOGETHER, rows, strict=True):
        before = ALONE.get(to, to.replace(" ", "_"))
        _is_difference(row[2], compare(arms[f"layers/{TOGETHER[added, to]}"], arms[f"layers/{before}"], "f1"))


def test_the_mask_cannot_matter_in_the_last_layer_nor_to_a_prompt_of_one_token(kept: dict[str, Kept]) -> None:
    qwen, gemma = kept["qwen-0.5b"], kept["gemma3-270m"]
    assert _unnamed(qwen["layers/last_layer"]) == _unnamed(qwen["layers/text"])
    for task in ("piqa", "openbookqa"):
        assert _unnamed(_of(gemma["ablated/none"], task)) == _unnamed(_of(gemma["baseline/none"], task))


def test_the_sweep_and_the_whole_test_set_agree_on_every_answer(kept: dict[str, Kept]) -> None:
    arms = kept["qwen-0.5b"]
    for swept, whole in (("text", "baseline/text"), ("none", "baseline/none"), ("all", "ablated/text")):
        answers = {each.id: each.prediction for each in _of(arms[whole], "xquad")}
        assert all(answers[each.id] == each.prediction for each in arms[f"layers/{swept}"])


@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m"])
def test_what_is_generated_has_no_label_to_look_at(model: str, kept: dict[str, Kept]) -> None:
    said = [[o.prediction for o in _of(kept[model][arm], "xquad")] for arm in ("beside/leaky", "ablated/text")]
    assert said[0] == said[1]


@pytest.mark.parametrize("model", MODELS)
def test_every_score_of_choices_follows_from_its_outcomes(model: str, kept: dict[str, Kept]) -> None:
    for name, *cells in _rows(f"{model}: choices"):
        for task, (accuracy, by_length, nll) in zip(("piqa", "openbookqa"), (cells[:3], cells[3:]), strict=True):
            own = _of(kept[MODELS[model]][ARMS[name]], task)
            assert len(own) == 500
            _is_share(accuracy, own, "acc")
            assert float(by_length) == pytest.approx(_mean(own, "acc_norm"), abs=0.0006)
            assert float(nll) == pytest.approx(_mean(own, "nll"), abs=0.006)


@pytest.mark.parametrize(("column", "model"), list(enumerate(MODELS.values(), start=1)))
def test_every_difference_in_accuracy_follows_from_the_outcomes(
    column: int, model: str, kept: dict[str, Kept]
) -> None:
    rows = _rows("Differences in accuracy")
    assert len(rows) == 10
    for row in rows:
        task, _, name = row[0].partition(", ")
        if not set(DIFFERENCES[name]) <= kept[model].keys():
            assert row[column] == "not run"
            continue
        one, other = (_of(kept[model][arm], task.lower()) for arm in DIFFERENCES[name])
        _is_difference(row[column], compare(one, other, "acc"))


def test_the_samples_are_every_119th_answer(kept: dict[str, Kept]) -> None:
    heading, stages = "Ten questions, every 119th of the file", ("baseline/text", "ablated/text")
    shown = [row[2:] + others[1:] for row, others in zip(_rows(heading), _rows(heading, table=1), strict=True)]
    models = ("qwen-0.5b", "smollm2-135m", "gemma3-270m")
    columns = [_of(kept[model][stage], "xquad")[::119] for model in models for stage in stages]
    assert shown == [[own.prediction or "(nothing)" for own in row] for row in zip(*columns, strict=True)]


def test_every_number_of_the_learning_rates_follows_from_the_diagnostics() -> None:
    rows = _rows("The learning rate of the finetunings")
    assert len(rows) == 6
    means: dict[str, float] = {}
    for wire, rate, *cells in rows:
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

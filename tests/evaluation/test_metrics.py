"""The scores are those of the official SQuAD script and of lm-eval, and every mistake has its class."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from latentwire.evaluation import metrics
from latentwire.lm.prompts import Example

DATA = Path(os.environ.get("LATENTWIRE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.parametrize(
    ("prediction", "answers", "exact_match", "f1"),
    [
        ("The  Denver Broncos.", ["denver broncos"], 1, 1),
        ("a man, a plan", ["man plan"], 1, 1),
        ("theatre", ["atre"], 0, 0),
        ("in Santa Clara, California", ["Santa Clara"], 0, 2 * 0.5 * 1 / 1.5),
        ("Paris Paris", ["Paris"], 0, 2 * 0.5 * 1 / 1.5),
        ("blue", ["red", "dark blue"], 0, 2 * 1 * 0.5 / 1.5),
        ("dark red", ["red", "dark red wine", "dark red"], 1, 1),
        ("", ["red"], 0, 0),
        ("the", ["a"], 1, 0),  # both empty once normalised: v1.1 calls them equal and shares no token
    ],
)
def test_spans_are_scored_as_squad_v1_1_scores_them(prediction, answers, exact_match, f1):
    assert metrics.score_span(prediction, answers) == {"exact_match": exact_match, "f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("so 5 + 7 = 12\n#### 12", True),
        ("#### 12.0", True),
        ("#### $12.", True),
        ("####12 apples", True),
        ("#### 12\n\nQuestion: next?\n#### 99", True),
        ("#### 1,2", True),
        ("#### -12", False),
        ("#### 120", False),
        ("#### 12.5", False),
    ],
)
def test_a_solution_is_right_if_its_number_is(prediction, right):
    found = metrics.score_solution(prediction, ["3 * 4 = 12\n#### 12"])
    assert found == {"exact_match": right, "unreadable": 0}


@pytest.mark.parametrize("prediction", ["", "the answer is 12", "####", "#### twelve", "#### 12/5", "### 12"])
def test_a_solution_without_a_number_is_wrong_and_counted(prediction):
    assert metrics.score_solution(prediction, ["#### 12"]) == {"exact_match": 0, "unreadable": 1}


def test_thousands_and_money_are_numbers():
    assert metrics.score_solution("#### $1,450,000.00", ["1450000"])["exact_match"] == 1


def test_a_gold_solution_without_a_number_is_an_error_and_no_model_is_blamed():
    with pytest.raises(ValueError, match="gold solution"):
        metrics.score_solution("#### 12", ["many"])


@pytest.mark.skipif(not (DATA / "gsm8k_test.jsonl").exists(), reason="real data is not here")
def test_every_gold_solution_of_gsm8k_is_right_by_itself():
    lines = (DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 1319
    assert all(metrics.score_solution(a, [a]) == {"exact_match": 1, "unreadable": 0} for a in answers)


def test_acc_norm_divides_by_characters_of_the_bare_choice_as_lm_eval_does():
    # 'éé' has 2 characters and 4 bytes: by bytes, or with the joining space, 'abc' would not win.
    assert metrics.score_choice([-2.0, -2.9], ["éé", "abc"], gold=1) == {"acc": 0, "acc_norm": 1}
    assert metrics.score_choice([-2.0, -3.1], ["éé", "abc"], gold=1) == {"acc": 0, "acc_norm": 0}


def test_the_first_of_equal_choices_wins():
    assert metrics.score_choice([-1.0, -1.0], ["aa", "bb"], gold=0) == {"acc": 1, "acc_norm": 1}
    assert metrics.score_choice([-1.0, -1.0], ["aa", "bb"], gold=1) == {"acc": 0, "acc_norm": 0}
    assert metrics.score_choice([-math.inf, -5.0], ["aa", "bb"], gold=1)["acc"] == 1


@pytest.mark.parametrize(
    ("scores", "choices", "gold"),
    [
        ([-1.0], ["a", "b"], 0),
        ([-1.0, -2.0], ["a", "b"], 2),
        ([-1.0, -2.0], ["a", "b"], -1),
        ([-1.0, -2.0], ["a", ""], 0),
        ([-1.0, math.nan], ["a", "b"], 0),
    ],
)
def test_scores_that_would_make_an_argmax_meaningless_are_refused(scores, choices, gold):
    with pytest.raises(ValueError, match=r"choices|not a number"):
        metrics.score_choice(scores, choices, gold)


def test_chance_is_the_mean_over_examples_of_one_over_their_choices():
    two, four = (example(choices=("a", "b", "c", "d")[:n], gold=0) for n in (2, 4))
    assert metrics.chance([two, four]) == 0.375
    with pytest.raises(ValueError, match="choices"):
        metrics.chance([two, example(answers=("a",))])


def example(context="", **fields) -> Example:
    return Example(id="1", group="1", context=context, question="?", **fields)


@pytest.mark.parametrize(
    ("prediction", "error"),
    [
        ("Oslo", None),
        ("oslo.", None),
        ("Rome", "wrong person"),
        ("old Oslo", "wrong boundary"),
        ("baker", "wrong relation"),
        ("bake", "not in the passage"),
        ("art", "not in the passage"),
        ("Oslow", "not in the passage"),
        ("Lima", "not in the passage"),
        ("", "unreadable"),
        ("the ...", "unreadable"),
        ("Os�lo", "unreadable"),
    ],
)
def test_every_wrong_span_has_one_class_and_tokens_are_whole(prediction, error):
    passage = "Martha, a baker, lives in Oslo. Ben lives in Rome."
    asked = example(context=passage, answers=("Oslo",), candidates=("Oslo", "Rome"))
    assert metrics.span_error(prediction, asked) == error


def test_every_kind_of_answer_names_its_metrics_as_its_scorer_does():
    scored = {
        "span": metrics.score_span("a", ["b"]),
        "solution": metrics.score_solution("a", ["1"]),
        "choice": metrics.score_choice([0, 1], ["a", "b"], 0),
    }
    assert {kind: tuple(found) for kind, found in scored.items()} == metrics.METRICS

"""Scores of one answer, and the class of mistake of a wrong one.

Metric names are lm-eval's. Every metric is a number between 0 and 1 for one example; intervals and
comparisons are made from many of them in `latentwire.evaluation.statistics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from latentwire.evaluation.matching import contains, normalize
from latentwire.lm.prompts import Example
from latentwire.tasks.base import AnswerKind
from latentwire.tasks.solutions import MARK, solution_number

METRICS: dict[AnswerKind, tuple[str, ...]] = {
    "span": ("exact_match", "f1"),
    "solution": ("exact_match", "unreadable"),
    "choice": ("acc", "acc_norm"),
}
"""The metrics of each kind of answer. The first is the primary one: it enters means over tasks."""
ALSO_SHARES = ("first_token_top1", "first_token_top5", "sticks")
"""Further metrics that lie in [0, 1]: whether the gold answer's first token is the likeliest, or one of the five
likeliest, and whether a counterfactual example is still answered as before."""


def score_span(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """`exact_match` and token `f1` of SQuAD v1.1, each the best over the gold `answers`.

    Example:
        >>> score_span("the old town hall", ["old town"])
        {'exact_match': 0.0, 'f1': 0.8}

    Raises:
        ValueError: there is no gold answer.
    """
    if not answers:
        raise ValueError("a span needs at least one gold answer")
    predicted = normalize(prediction)
    golds = [normalize(answer) for answer in answers]
    return {
        "exact_match": float(predicted in golds),
        "f1": max(_token_f1(predicted.split(), gold.split()) for gold in golds),
    }


def _token_f1(predicted: list[str], gold: list[str]) -> float:
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


def score_solution(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """`exact_match` of the number after `####`, and `unreadable`: 1 if there is no such number.

    A gold answer is a worked solution ending in `#### N`, or N alone. An unreadable prediction is
    wrong.

    Example:
        >>> score_solution("3 + 4 = 7 #### 7", ["#### 7"])
        {'exact_match': 1.0, 'unreadable': 0.0}

    Raises:
        ValueError: there is no gold answer or one has no number: that is the data's mistake and must not count as
            the model's.
    """
    golds = [solution_number(answer if MARK in answer else f"{MARK} {answer}") for answer in answers]
    if not golds or None in golds:
        raise ValueError(f"a gold solution must end in '#### N' or be a number, found {list(answers)!r}")
    predicted = solution_number(prediction)
    return {"exact_match": float(predicted in golds), "unreadable": float(predicted is None)}


def score_choice(log_probabilities: Sequence[float], choices: Sequence[str], gold: int) -> dict[str, float]:
    """`acc` and `acc_norm` of a multiple-choice answer, exactly as lm-eval 0.4 defines them.

    `acc` takes the largest sum, `acc_norm` the largest sum divided by `len(choice)`: characters (not
    bytes, not tokens) of the bare choice, without the space that joins it to the prompt. The first
    wins a tie (`ConfigurableTask.process_results` in lm_eval/api/task.py).

    Args:
        log_probabilities: of each choice, summed over its tokens, in nats.
        choices: the choices as text.
        gold: the index of the right one.

    Example:
        >>> score_choice([-2.0, -3.0], ["a", "abcd"], 1)
        {'acc': 0.0, 'acc_norm': 1.0}

    Raises:
        ValueError: lengths disagree, `gold` is out of range, a choice is empty or a log-probability is not a
            number.
    """
    scores = np.asarray(log_probabilities, dtype=np.float64)
    lengths = np.array([float(len(choice)) for choice in choices])
    if scores.shape != lengths.shape or not 0 <= gold < len(choices) or not lengths.all():
        raise ValueError(f"{scores.size} scores and gold {gold} do not fit the choices {list(choices)!r}")
    if np.isnan(scores).any():
        raise ValueError(f"a log-probability is not a number: {scores.tolist()}")
    return {
        "acc": float(np.argmax(scores) == gold),
        "acc_norm": float(np.argmax(scores / lengths) == gold),
    }


def chance(examples: Sequence[Example]) -> float:
    """The accuracy of guessing among the choices of `examples`: the mean of 1 / number of choices.

    Example:
        >>> chance(resolve(["choices/home"], None)[0].examples("test", 100))

    Raises:
        ValueError: there are no examples or one has no choices.
    """
    if not examples or not all(example.choices for example in examples):
        raise ValueError("chance is defined for examples with choices only")
    return float(np.mean([1 / len(example.choices) for example in examples]))


def span_error(prediction: str, example: Example) -> str | None:
    """The class of mistake of a generated span: None if it is right, else the first of these that fits.

    `unreadable`: nothing is left after normalisation, or bytes that are no character (U+FFFD).
    `wrong person`: the asked relation of someone else, another of `example.candidates`.
    `wrong boundary`: contains the answer or is part of it.
    `wrong relation`: is mentioned somewhere else in the passage.
    `not in the passage`: everything else.

    Spans are compared normalized and as whole words: `art` is not in `Martha` (`evaluation.matching`).

    Example:
        >>> span_error("town hall", replace(example, answers=("old town hall",)))
        'wrong boundary'
    """
    predicted = normalize(prediction)
    golds = [normalize(answer) for answer in example.answers]
    if predicted in golds:
        return None
    if not predicted or "\N{REPLACEMENT CHARACTER}" in prediction:
        return "unreadable"
    if predicted in map(normalize, example.candidates):
        return "wrong person"
    if any(contains(predicted, gold) or contains(gold, predicted) for gold in golds):
        return "wrong boundary"
    return "wrong relation" if contains(normalize(example.context), predicted) else "not in the passage"

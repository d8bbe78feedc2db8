"""Arms beside the baseline: corrected for how many are compared, with what the sample can resolve."""

from __future__ import annotations

from latentwire.evaluation import score_tables
from latentwire.evaluation.baseline import against_baseline
from latentwire.evaluation.evaluate import Evaluation
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import compare
from latentwire.printing import text_of


def arm(name: str, right: int, n: int = 60, task: str = "squad") -> list[Outcome]:
    return [
        Outcome(
            task=task,
            arm=name,
            id=f"{at}",
            group=f"{at}",
            prediction="",
            metrics={"exact_match": float(at < right), "f1": 1.0 if at < right else 0.25},
        )
        for at in range(n)
    ]


ARMS = {"text": arm("text", 40), "near": arm("near", 33), "far": arm("far", 5), "half": arm("half", 32)[:50]}
OUTCOMES = [outcome for own in ARMS.values() for outcome in own]


def test_every_other_arm_is_compared_with_text_on_shared_examples_and_corrected_as_holm_does() -> None:
    pairs = against_baseline(OUTCOMES)
    assert [(pair.a, pair.b, pair.metric) for pair in pairs] == [
        (name, "text", "exact_match") for name in ("near", "far", "half")
    ]
    raw = [compare(ARMS[name], ARMS["text"][: len(ARMS[name])]).p for name in ("near", "far", "half")]
    assert [pair.found.p for pair in pairs] == raw
    assert [pair.found.p_holm for pair in pairs] == holm(raw)
    assert [pair.found.n for pair in pairs] == [60, 60, 50]


def test_a_difference_that_is_resolved_alone_may_not_be_among_several() -> None:
    alone = compare(ARMS["near"], ARMS["text"])
    assert alone.p < 0.05
    assert alone.resolved
    many = [arm(f"same{at}", 40) for at in range(8)] + [ARMS["text"], ARMS["near"]]
    pair = next(p for p in against_baseline([o for own in many[::-1] for o in own]) if p.a == "near")
    assert pair.found.p_holm is not None
    assert pair.found.p < 0.05 <= pair.found.p_holm
    assert not pair.found.resolved


def test_the_table_shows_f1_the_correction_and_what_each_comparison_resolves() -> None:
    shown = text_of(score_tables.scores(Evaluation(outcomes=OUTCOMES)), width=200)
    assert "f1 [95 %]" in shown
    assert "Holm-corrected over the 3 comparisons" in shown
    assert shown.count("this sample resolves ≥") == 3
    assert "0.750 [" in shown  # the F1 of text: 40 of 60 right, a quarter elsewhere


def test_the_numbers_of_a_comparison_are_those_that_are_shown() -> None:
    pair = against_baseline(OUTCOMES)[0]
    found = pair.to_json()
    assert {
        "task",
        "metric",
        "a",
        "b",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
        "resolvable",
        "resolved",
    } <= set(found)
    assert (found["difference"], found["resolved"]) == (pair.found.difference, pair.found.resolved)

"""Claims about ratios and sums of arms: right values, intervals that hold the truth, nothing made up."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from latentwire.evaluation.combinations import UNDEFINED, PairedArms
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.statistics import compare, estimate


def arm(name: str, right: Sequence[bool | int], task: str = "t") -> list[Outcome]:
    return [
        Outcome(task=task, arm=name, id=f"{at}", group=f"{at}", prediction="", metrics={"acc": float(value)})
        for at, value in enumerate(right)
    ]


def rate(share: float, n: int = 100) -> list[bool]:
    return [at < share * n for at in range(n)]


def test_a_ratio_is_that_of_the_values() -> None:
    arms = PairedArms.of({"x": arm("x", rate(0.45)), "b": arm("b", rate(0.9))})
    found = arms.ratio({"x": 1}, {"b": 1})
    assert found.value == pytest.approx(0.5)
    assert found.low is not None
    assert found.high is not None
    assert 0.35 < found.low < 0.5 < found.high < 0.65


def test_a_difference_has_the_interval_of_a_comparison() -> None:
    a, b = arm("a", rate(0.7, 400)), arm("b", [at % 2 for at in range(400)])
    ours, theirs = PairedArms.of({"a": a, "b": b}).linear({"a": 1, "b": -1}), compare(a, b)
    assert ours.value == pytest.approx(theirs.difference)
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_one_arm_alone_has_the_interval_of_an_estimate() -> None:
    a = arm("a", rate(0.7, 300))
    ours, theirs = PairedArms.of({"a": a}).linear({"a": 1}), estimate(a)
    assert (ours.value, ours.low, ours.high) == (
        pytest.approx(theirs.value),
        pytest.approx(theirs.low, abs=0.01),
        pytest.approx(theirs.high, abs=0.01),
    )


def test_dividing_by_what_is_not_resolved_above_nothing_is_undefined() -> None:
    arms = PairedArms.of({"x": arm("x", rate(0.5)), "b": arm("b", rate(0.5)), "none": arm("none", rate(0.48))})
    assert arms.ratio({"x": 1, "none": -1}, {"b": 1, "none": -1}) == UNDEFINED
    zero = PairedArms.of({"x": arm("x", rate(0.5)), "b": arm("b", rate(0.0))})
    assert zero.ratio({"x": 1}, {"b": 1}) == UNDEFINED


def test_two_perfect_arms_still_have_an_interval() -> None:
    arms = PairedArms.of({"x": arm("x", [1] * 100), "b": arm("b", [1] * 100)})
    found = arms.ratio({"x": 1}, {"b": 1})
    assert found.value == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 100), abs=1e-3)  # Clopper–Pearson of 100 of 100
    assert found.high is not None
    assert found.high > 1.02


def test_a_mixed_arm_takes_task_by_task_an_arm_or_a_constant() -> None:
    both = arm("none", rate(0.3), "a") + arm("none", rate(0.1), "b")
    arms = PairedArms.of({"none": both}).with_mixed("floor", ["none", 0.25])
    assert arms.means("floor").tolist() == pytest.approx([0.3, 0.25])
    assert arms.value("floor") == pytest.approx(0.275)
    constant = PairedArms.of({"none": both}).with_mixed("floor", [0.5, 0.25])
    assert constant.linear({"floor": 1}).low == constant.linear({"floor": 1}).high == pytest.approx(0.375)


@pytest.mark.slow
def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say() -> None:
    """x is right in 80 % of what b is right in, and never elsewhere: true ratio 0.8, floor 0.25 as a constant."""
    draw = random.Random(0)
    held = floored = 0
    trials = 120
    for _ in range(trials):
        b = [draw.random() < 0.75 for _ in range(150)]
        x = [right and draw.random() < 0.8 for right in b]
        arms = PairedArms.of({"x": arm("x", x), "b": arm("b", b)}).with_mixed("floor", [0.25])
        found = arms.ratio({"x": 1}, {"b": 1})
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.8 <= found.high
        above = arms.ratio({"x": 1, "floor": -1}, {"b": 1, "floor": -1})
        assert above.low is not None
        assert above.high is not None
        floored += above.low <= (0.6 - 0.25) / (0.75 - 0.25) <= above.high
    # 95 % of 120 is 114; below 107 has a probability of 0.2 %.
    assert held >= 107
    assert floored >= 107


def test_arms_on_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        PairedArms.of({"x": arm("x", rate(0.5, 10)), "b": arm("b", rate(0.5, 11))})
    with pytest.raises(ValueError, match="share"):
        PairedArms.of({"x": [Outcome(task="t", arm="x", id="1", group="1", prediction="", metrics={"nll": 2.0})]})

"""Claims about the gap closed and about gates: right values, floors where they belong, nothing made up."""

from dataclasses import replace

import pytest

from latentwire.errors import UserError
from latentwire.evaluation.gaps import gaps
from latentwire.evaluation.gates import Gate, hold
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.wire_tables import followed


def arm(name, share, n=400, task="t", only=None):
    return [
        Outcome(task=task, arm=name, id=f"{at}", group=f"{at}", prediction="", metrics={"exact_match": float(hit)})
        for at in range(only or n)
        for hit in [(at * 37) % n < share * n]
    ]


ARMS = [*arm("text", 0.9), *arm("none", 0.1), *arm("x", 0.74)]


def test_the_gap_is_closed_above_the_highest_floor():
    found = gaps(ARMS, {})["x"]["t"]
    assert found.retention.value == pytest.approx(0.74 / 0.9)
    assert found.closed.value == pytest.approx(0.64 / 0.8)
    assert (found.floor, found.floor_is, found.n) == (pytest.approx(0.1), "none", 400)
    above = gaps(ARMS, {"t": {"type_floor": 0.25}})["x"]["t"]
    assert above.closed.value == pytest.approx(0.49 / 0.65)
    assert above.floor_is == "type_floor"
    assert above.closed.low < above.closed.value < above.closed.high


def test_an_arm_without_an_example_in_common_with_text_has_no_gap():
    apart = [replace(each, id=f"other {each.id}") for each in arm("x", 0.5, n=20)]
    both = [*arm("text", 0.9), *arm("none", 0.1), *apart]
    assert gaps(both, {})["x"] == {}
    part = [*both, *arm("text", 0.9, task="u"), *arm("none", 0.1, task="u"), *arm("x", 0.5, task="u")]
    assert list(gaps(part, {})["x"]) == ["u"]


def test_where_text_is_not_above_the_floor_there_is_no_gap():
    found = gaps(ARMS, {"t": {"type_floor": 0.9}})["x"]["t"]
    assert found.closed.value is None
    assert found.retention.value is not None


def test_an_arm_that_left_examples_out_is_compared_on_those_it_has():
    whole = [*arm("text", 0.9), *arm("none", 0.1), *arm("x", 0.74, only=300)]
    assert gaps(whole, {})["x"]["t"].n == 300


def test_every_reader_has_its_own_text_and_floor():
    other = [*arm("text@wren", 0.8), *arm("none@wren", 0.2), *arm("x@wren", 0.5), *arm("union(x + x@wren)", 1.0)]
    found = gaps([*ARMS, *other], {})
    assert found["x"]["t"].closed.value == pytest.approx(0.8)
    assert found["x@wren"]["t"].closed.value == pytest.approx(0.5)
    assert found.keys() == {"x", "x@wren"}


def test_without_text_and_none_nothing_is_derived():
    assert gaps([*arm("text", 0.9), *arm("x", 0.5)], {}) == {}


def test_a_counterfactual_arm_has_no_gap_and_is_described_in_words():
    changed = [replace(o, metrics={**o.metrics, "sticks": 0.25}) for o in arm("x:counterfactual", 0.7)]
    assert gaps([*ARMS, *changed], {}).keys() == {"x"}
    (sentence,) = followed([*ARMS, *changed])
    assert "t over x:counterfactual: follows 0.700" in sentence
    assert "sticks 0.250" in sentence


def test_a_perfect_wire_closes_all_of_it_and_a_blind_one_nothing():
    same = gaps([*arm("text", 0.9), *arm("none", 0.1), *arm("x", 0.9), *arm("y", 0.1)], {})
    assert same["x"]["t"].closed.value == pytest.approx(1)
    assert same["y"]["t"].closed.value == pytest.approx(0)


def test_a_gate_is_held_against_the_bound_of_the_interval():
    outcomes = arm("x", 0.5, 600)
    low = hold(Gate.parse("exact_match >= 0.1"), outcomes).found.low
    assert 0.4 < low < 0.5
    assert hold(Gate.parse(f"exact_match >= {low - 1e-6}"), outcomes).held
    assert not hold(Gate.parse("exact_match >= 0.49"), outcomes).held
    assert not hold(Gate.parse("exact_match <= 0.51"), outcomes).held
    assert "NOT HELD" in str(hold(Gate.parse("exact_match <= 0.51"), outcomes))
    assert hold(Gate.parse("exact_match<=0.6"), outcomes).held


@pytest.mark.parametrize("text", ["exact_match", "exact_match > 0.1", "exact_match >= x", ">= 1", "a >= nan"])
def test_a_wrong_gate_is_refused_in_one_sentence(text):
    with pytest.raises(UserError, match="expected METRIC >= NUMBER"):
        Gate.parse(text)


def test_few_examples_or_another_metric_hold_no_gate():
    with pytest.raises(UserError, match="found 400 examples, expected at least 500"):
        hold(Gate.parse("exact_match >= 0.1"), arm("x", 0.5))
    with pytest.raises(UserError, match="nearest: exact_match"):
        hold(Gate.parse("exact_mach >= 0.1"), arm("x", 0.5, 600))

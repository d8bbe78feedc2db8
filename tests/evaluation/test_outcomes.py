"""Outcomes come back from their file exactly as they were."""

from __future__ import annotations

import math

import pytest

from latentwire.errors import UserError
from latentwire.evaluation.outcomes import Outcome, read_outcomes, write_outcomes


def outcome(**fields) -> Outcome:
    given = {"task": "one_hop", "arm": "text", "id": "7", "group": "3", "prediction": "Oslo", "metrics": {}}
    return Outcome(**(given | fields))


OUTCOMES = [
    outcome(metrics={"exact_match": 1.0, "f1": 1.0}, tokens=123),
    outcome(metrics={"f1": 0.1 + 0.2, "a": 1 / 3, "nll": 5e-324}, error="wrong person"),
    outcome(prediction='a "quoted"\nline\r\n\u2028 and \x00, \u00e9\U0001f600', arm="deranged@wren"),
    outcome(prediction="", id="é", group=""),
]


def test_what_is_written_is_read_back_exactly(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    write_outcomes(path, OUTCOMES)
    found = read_outcomes(path)
    assert found == OUTCOMES
    assert [list(o.metrics) for o in found] == [list(o.metrics) for o in OUTCOMES]  # the first is primary
    assert path.read_bytes().count(b"\n") == len(OUTCOMES)


def test_an_unfinished_writing_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    write_outcomes(path, OUTCOMES)

    def broken():
        yield OUTCOMES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_outcomes(path, broken())
    assert read_outcomes(path) == OUTCOMES


def test_a_score_that_is_no_number_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        outcome(metrics={"f1": math.nan}).to_json()


@pytest.mark.parametrize(
    "line", ['{"task": "one_hop"}', "[]", '{"task": ', OUTCOMES[0].to_json()[:-1] + ', "x": 1}']
)
def test_a_line_that_is_no_outcome_is_named(tmp_path, line):
    path = tmp_path / "outcomes.jsonl"
    path.write_text(OUTCOMES[0].to_json() + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"outcomes\.jsonl, line 2: "):
        read_outcomes(path)

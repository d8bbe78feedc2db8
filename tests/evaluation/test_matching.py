"""Answers are found in texts as a pattern with word boundaries would find them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from latentwire.evaluation.matching import contains, exchanged

SPACED = r"[^\W\u0590-\u08ff\u0e00-\u0fff\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7ff\U0001b000-\U0001b16f]"
LETTERS = st.sampled_from("ab1 -_.éЖ北京かت한ก\U0001b001\n")
TEXTS = st.text(LETTERS, max_size=14)
ANSWERS = st.lists(st.text(LETTERS, min_size=1, max_size=3), min_size=1, max_size=3)


def bounded(answer: str) -> str:
    before = rf"(?<!{SPACED})" if re.match(SPACED, answer) else ""
    after = rf"(?!{SPACED})" if re.match(SPACED, answer[-1]) else ""
    return before + re.escape(answer) + after


@given(TEXTS, ANSWERS)
def test_answers_are_exchanged_as_a_pattern_of_whole_words_would(text, answers):
    pattern = "|".join(map(bounded, sorted(answers, key=len, reverse=True)))
    assert exchanged(text, answers, "X") == re.subn(pattern, "X", text)


@given(TEXTS, ANSWERS)
def test_a_part_is_contained_where_a_pattern_of_whole_words_finds_it(text, answers):
    assert contains(text, answers[0]) == (re.search(bounded(answers[0]), text) is not None)


def test_nothing_is_no_answer():
    assert exchanged("some text", [""], "X") == ("some text", 0)
    assert not contains("some text", "")

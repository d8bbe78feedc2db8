"""What a source is asked that writes for a reader."""

from __future__ import annotations

import pytest

from latentwire import PromptFormat
from latentwire.lm.model import LM
from latentwire.wires.relay import CHAT_CUE, Relay
from tests.support.models import tiny_model, tiny_tokenizer

CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}[assistant]"
FORM = PromptFormat(template="chat", instruction="Be brief.", system="Answer with one phrase.")


@pytest.fixture(scope="module")
def source() -> LM:
    return LM(tiny_model(), tiny_tokenizer(chat=CHAT), name="source", prompt_format=FORM)


def asked(source: LM, question: str) -> str:
    wire = Relay(source="source", ratio=4, question=bool(question))
    return source.tokenizer.decode(wire._prompt("Ada has a cat.", question, source))


def test_a_source_that_sees_no_question_is_not_told_how_to_answer_one(source: LM) -> None:
    text = asked(source, "")
    assert CHAT_CUE in text
    assert "Be brief." not in text
    assert "Answer with one phrase." not in text


def test_a_source_that_sees_the_question_is_asked_as_the_study_says(source: LM) -> None:
    text = asked(source, "Who has a cat?")
    assert text.index("Answer with one phrase.") < text.index("Be brief.") < text.index("Who has a cat?")

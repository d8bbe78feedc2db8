"""A context is encoded once, and asked as `evaluate` would ask."""

import pytest

import latentwire as lw
from latentwire.lm.prompts import Prompt
from tests.support.models import tiny_lm

CONTEXT = "Ada lives in the old town by the river."
QUESTIONS = ["Where does Ada live?", "Who lives there?"]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(max_position_embeddings=256)


@pytest.mark.parametrize(
    "spec", ["text", "text,mask=prefix", "budget,tokens=4", "none", "nth,ratio=2", "evict,ratio=2"]
)
def test_an_answer_is_the_one_that_the_whole_wire_gives(lm, spec):
    memory = lw.compress(lm, CONTEXT, spec)
    how = lw.Decoding(max_new_tokens=6)
    wire = lw.wire(spec).bind(lm)
    for question in QUESTIONS:
        prefix = wire([Prompt(context=CONTEXT, question=question)], lm)
        assert memory.ask(question, decoding=how) == lm.generate(lm.prefill(prefix), how)[0].text.strip()


def test_the_context_is_encoded_once(lm, monkeypatch):
    memory = lw.compress(lm, CONTEXT, "nth,ratio=2")
    monkeypatch.setattr(type(memory.wire), "encode", lambda *a: pytest.fail("encoded again"))
    assert len(memory.ask_all(QUESTIONS, max_new_tokens=3)) == 2


def test_a_message_says_how_large_it_is(lm):
    text, half, quarter = (lw.compress(lm, CONTEXT, spec) for spec in ("text", "nth,ratio=2", "nth,ratio=4"))
    assert text.nbytes == len(CONTEXT.encode())
    assert text.latents is None
    assert 0 < quarter.latents < half.latents
    assert quarter.nbytes < half.nbytes
    assert f"{half.latents} latents" in repr(half)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("relay,source=SOURCE,tokens=4,question=true", "encodes the question together with the context"),
        ("nth,ratio=2:mean", "sends the mean of other contexts"),
        ("nht", "nearest: nth"),
    ],
)
def test_a_wire_that_cannot_compress_one_context_is_refused(lm, tmp_path, spec, expected):
    lm.save(tmp_path / "source")
    with pytest.raises(lw.UserError, match=expected):
        lw.compress(lm, CONTEXT, spec.replace("SOURCE", str(tmp_path / "source")))


def test_one_question_is_no_list_of_questions(lm):
    with pytest.raises(lw.UserError, match="expected a list"):
        lw.compress(lm, CONTEXT, "text").ask_all("Where?")

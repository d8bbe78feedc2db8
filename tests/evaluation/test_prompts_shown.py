"""`eval --show`: a prompt is printed as the reader gets it."""

from __future__ import annotations

import pytest

from latentwire import Example, PromptFormat
from latentwire.evaluation import arms as parsing
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.prompts_shown import departures, shown
from latentwire.lm.model import LM
from latentwire.tasks.base import Task
from tests.support.models import tiny_model, tiny_tokenizer

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}[assistant]"
EXAMPLES = [
    Example(id=f"e{n}", group=f"g{n}", context=f"{who} has a cat.", question="Who?", answers=(who, "nobody"))
    for n, who in enumerate(("Ada", "Bob", "Cid"))
]
TASK = Task(name="pets", answer="span", source=lambda split: EXAMPLES, max_new_tokens=3)


@pytest.fixture(scope="module")
def lm() -> LM:
    form = PromptFormat(template="chat", instruction="Be brief.")
    return LM(tiny_model(), tiny_tokenizer(chat=CHAT), name="tiny", prompt_format=form)


@pytest.fixture(scope="module")
def printed(lm: LM) -> tuple[list[str], dict[tuple[str, str], str]]:
    arms = [parsing.parse(text) for text in ("text", "text,mask=prefix", "text,mask=prefix,layers=0-1", "none")]
    result = evaluate(lm, [TASK], arms)
    answers = {(outcome.arm, outcome.id): outcome.prediction for outcome in result.outcomes}
    return list(shown({None: lm}, [TASK], arms, result, 2)), answers


def test_prompts_are_printed_whole_with_special_tokens(printed):
    lines, _ = printed
    assert [line for line in lines if line.startswith("\n===")] == [
        "\n=== pets, prompt 1 of 2: e0",
        "\n=== pets, prompt 2 of 2: e1",
    ]
    assert "<s>[user]Ada has a cat.\nBe brief.\nWho?</s>[assistant]Answer:" in lines
    assert "<s>[user]Be brief.\nWho?</s>[assistant]Answer:" in lines, "the prompt of `none`"


def test_bidirectional_tokens_stand_in_brackets_and_are_counted(printed, lm):
    lines, _ = printed
    count = len(lm.format.tokens("Ada has a cat.", "Who?", lm).ids)
    assert f"\n--- text: {count} tokens, each sees those before it" in lines
    both = f"{count} tokens, tokens 1 to {count} see each other in both directions"
    assert f"\n--- text,mask=prefix: {both}, the rest those before it" in lines
    assert f"\n--- text,mask=prefix,layers=0-1: {both} in layers 0-1, the rest those before it" in lines
    assert "⟦<s>[user]Ada has a cat.\nBe brief.\nWho?</s>[assistant]Answer:⟧" in lines
    assert "(the tokens of text,mask=prefix)" in lines, "the same tokens are printed once"


def test_the_models_answers_stand_beside_the_gold(printed):
    lines, answers = printed
    for (arm, example), answer in answers.items():
        if example != "e2":
            who = {"e0": "Ada", "e1": "Bob"}[example]
            assert f">>> answer {answer!r}, gold {who!r} or 'nobody'" in lines, arm


def test_a_model_read_with_another_format_than_it_was_saved_with_says_so(lm):
    arm = parsing.parse("text")
    assert departures({None: lm}, [arm]) == []
    lm.saved_format = PromptFormat(template="chat")
    try:
        (sentence,) = departures({None: lm}, [arm])
    finally:
        lm.saved_format = None
    assert sentence == (
        "tiny is read with another prompt format than it was trained with: instruction 'Be brief.' and not ''."
    )

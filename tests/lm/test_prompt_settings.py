"""What a user says about prompts becomes the one format that training and evaluation share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from latentwire import LM, Example, PromptFormat, UserError
from latentwire.lm import chat_template
from latentwire.lm.prompt_settings import PromptSettings, departure
from tests.support.models import tiny_model, tiny_tokenizer

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
OPENED = "{% if add_generation_prompt %}[assistant]{% endif %}"
CHAT = TURNS + OPENED
THINKS = TURNS + "{% if add_generation_prompt %}[assistant]{% if not enable_thinking %}<no>{% endif %}{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT
DROPS_SYSTEM = CHAT.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
ASK = "Answer with a few words copied from the passage."


def reader(chat: str | None = CHAT, **tokenizer: Any) -> LM:
    return LM(tiny_model(), tiny_tokenizer(chat=chat, **tokenizer), name="tiny")


@pytest.fixture(scope="module")
def lm() -> LM:
    return reader()


def text_of(form: PromptFormat, lm: LM, context: str = "Ada has a cat.", question: str = "What?") -> str:
    return str(lm.tokenizer.decode(form.tokens(context, question, lm).ids))


def test_instruction_and_system_text_stand_where_the_settings_say(lm):
    settings = PromptSettings(template="chat", instruction=ASK, system="Be brief.")
    form = settings.over(PromptFormat(), lm)
    said = f"Ada has a cat.\n{ASK}\nWhat?"
    assert text_of(form, lm) == f"[system]Be brief.</s>[user]{said}</s>[assistant]Answer:"
    assert (
        form.before("Ada has a cat.", lm) + form.after("What?", lm)
        == form.tokens("Ada has a cat.", "What?", lm).ids
    )
    plain = PromptSettings(instruction=ASK).over(PromptFormat(), lm)
    assert text_of(plain, lm) == f"Ada has a cat.\n{ASK}\nQuestion: What?\nAnswer:"


def test_what_settings_leave_out_stays_as_it_is_saved_beside_the_model(lm):
    saved = PromptFormat(template="chat", anchor="So:", system="Old.")
    assert PromptSettings(instruction=ASK).over(saved, lm) == saved.model_copy(update={"instruction": ASK})
    assert PromptSettings(template="question").over(saved, lm) == PromptFormat(anchor="So:")
    assert PromptSettings.asked() is None


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("template", [CHAT, "{{ bos_token }}" + CHAT, "{{ bos_token }}{{ bos_token }}" + CHAT])
def test_a_chat_begins_with_bos_exactly_once_where_the_tokenizer_adds_one(bos, template):
    lm, form = reader(template, bos=bos), PromptFormat(template="chat")
    begins = 1 if bos or "bos_token" in template else 0
    for ids in (
        form.tokens("Ada has a cat.", "What?", lm).ids,
        form.before("Ada has a cat.", lm),
        form.conversation([("user", "What?")], lm, answering=True),
    ):
        assert ids.count(1) == begins
        assert ids[:begins] == [1] * begins
    ids, spans = form.spans("Ada has a cat.", lm)
    assert ids == form.before("Ada has a cat.", lm)
    text = "Ada has a cat."
    assert "".join(text[a:b] for a, b in spans if a >= 0) == text
    assert len(spans) == len(ids)


@pytest.mark.parametrize("thinking", [False, True])
def test_thinking_is_off_unless_asked_for_where_the_template_has_a_switch(thinking):
    lm = reader(THINKS)
    form = PromptSettings(template="chat", anchor="", thinking=thinking or None).over(PromptFormat(), lm)
    assert text_of(form, lm).endswith("[assistant]" if thinking else "[assistant]<no>")


def test_an_answer_without_an_anchor_begins_as_the_template_begins_the_models_turn():
    tight, wide = reader(), reader(TURNS.replace("{{ m['content'] }}", " {{ m['content'] }}") + OPENED)
    form = PromptFormat(template="chat", anchor="")
    example = Example(id="1", group="1", context="Ada has a cat.", question="What?", answers=("a cat",))
    for lm, text in ((tight, "a cat"), (wide, " a cat")):
        _, (answer,) = form.encode(example, lm)
        assert lm.tokenizer.decode(answer) == text


def test_an_answer_ends_where_the_chat_ends_the_models_turn():
    lm = reader(CHAT.replace("</s>", "<pad>"))  # a turn's end that no configuration names as an end
    assert lm.eos_ids == {2}
    lm.format = PromptFormat(template="chat")
    assert lm.eos_ids == {0, 2}
    assert lm.format.answer_end(lm) == [0]
    assert PromptFormat().answer_end(reader()) == [2]


def test_a_benchmarks_own_words_stand_in_the_chat_as_they_are(lm):
    words = PromptFormat(template="raw", anchor="", delimiter=" ")
    form = PromptFormat(template="chat", instruction=ASK, system="S").around(words)
    assert text_of(form, lm, "Q: What", "?\nA:") == f"[system]S</s>[user]{ASK}\nQ: What?\nA:</s>[assistant]"
    assert PromptFormat().around(words) == words
    ids, whole = form.before("Q: What", lm), form.tokens("Q: What", "?\nA:", lm).ids
    assert whole[: len(ids)] == ids


@pytest.mark.parametrize("template", ["question", "raw", "chat"])
def test_a_saved_format_can_be_read_back_as_settings(lm, template, tmp_path):
    form = PromptFormat(template=template, anchor="" if template == "raw" else "So:", anchor_block="causal")
    file = tmp_path / "prompt_format.json"
    file.write_text(json.dumps(form.model_dump()))
    assert PromptSettings.read(file).over(PromptFormat(instruction="Old."), lm) == form


def test_options_go_over_the_file(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text("template: question\ninstruction: Old.\nanchor: 'So:'\n")
    asked = PromptSettings.asked(file, chat=True, instruction=ASK)
    assert asked == PromptSettings(template="chat", instruction=ASK, anchor="So:")


@pytest.mark.parametrize(
    ("settings", "chat", "problem"),
    [
        ({"template": "chat"}, None, "tokenizer has no chat template; expected an instruct model"),
        ({"template": "chat", "system": "S"}, NO_SYSTEM, "refuses the turns system, user .*no system turn"),
        ({"template": "chat", "system": "S"}, DROPS_SYSTEM, "leaves it out; expected none"),
        ({"system": "S"}, CHAT, "system: found it beside template question, expected template chat"),
        ({"thinking": True}, CHAT, "thinking: found it beside template question"),
        ({"template": "raw", "instruction": ASK}, CHAT, "instruction: found one beside template raw"),
        ({"template": "chat"}, "{{ 1 / 0 }}", "refuses the turns user"),
        ({"template": "chat"}, "{% if %}", "refuses the turns user"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused_in_one_sentence(settings, chat, problem):
    with pytest.raises(UserError, match=problem) as error:
        PromptSettings(**settings).over(PromptFormat(), reader(chat))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found nothing in"),
        ("[1]", "found list in"),
        ("template: chta", "template: found 'chta'"),
        ("instructions: x", "instructions: expected some of template"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_in_one_sentence(tmp_path, text, problem):
    file = tmp_path / "prompts.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=problem) as error:
        PromptSettings.asked(file)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        PromptSettings.asked(tmp_path / "absent.json")


def test_a_checkpoint_read_with_another_format_says_which_fields_differ():
    old, new = PromptFormat(), PromptFormat(template="chat", instruction=ASK)
    assert departure(old, old, "X") is None
    assert departure(new, None, "X") is None
    sentence = departure(new, old, "X")
    assert sentence == (
        "X is read with another prompt format than it was trained with: template 'chat' and not 'question', "
        f"instruction {ASK!r} and not ''."
    )


def test_what_stands_around_an_answer_is_that_of_the_template(lm):
    assert chat_template.around_answer(lm) == ("", "</s>")
    assert chat_template.end_of_turn(reader(TURNS.replace("</s>", "\n") + OPENED)) == frozenset()

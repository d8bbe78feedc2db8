"""A user's plain turn is written without running the chat template, as the template would have written it."""

import pytest

from latentwire.lm import chat_template
from latentwire.lm.chat_template import render, user_turn
from tests.support.models import tiny_lm, tiny_tokenizer

LOOP = "{% for m in messages %}<{{ m['role'] }}>BODY</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
TEMPLATES = {
    "verbatim": LOOP.replace("BODY", "{{ m['content'] }}"),
    "strips": LOOP.replace("BODY", "{{ m['content'] | trim }}"),
    "cuts": LOOP.replace("BODY", "{{ m['content'].split('</think>')[-1] }}"),
    "counts": LOOP.replace("BODY", "{{ m['content'] | length }} {{ m['content'] }}"),
    "upper": LOOP.replace("BODY", "{{ m['content'] | upper }}"),
}
TEXTS = [
    "Ada lives here.\nQuestion: Where?",
    " blanks at both ends \n",
    "I think.</think>Not so.",
    "a <b> {c} [d] | e",
    "Zq7 one.",
    "",
    'Ünïcode 漢字, \u2028 and "quotes"',
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_turn_is_what_the_template_writes(template, system):
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(chat=TEMPLATES[template])
    before = [] if system is None else [("system", system)]
    for text in TEXTS:
        assert user_turn(text, lm, system=system) == render([*before, ("user", text)], lm)


def test_the_template_runs_for_its_frame_only(monkeypatch):
    runs = []
    monkeypatch.setattr(chat_template, "render", lambda *a, **k: (runs.append(a), render(*a, **k))[1])
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(chat=TEMPLATES["verbatim"])
    for number in range(50):
        user_turn(f"Text {number}.", lm)
    assert len(runs) == len(chat_template.PROBES)

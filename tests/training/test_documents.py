"""What is learned of an example or a conversation, and files that cannot be used."""

import json

import pytest

from latentwire import wires
from latentwire.errors import UserError
from latentwire.lm.prompts import CAUSAL, Example
from latentwire.training.data.row_data import FileData
from latentwire.training.data.world import WorldData
from latentwire.training.finetuning.documents import IGNORE, document
from tests.support.models import tiny_lm, tiny_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EXAMPLE = Example(id="e", group="g", context="Ada has 12 apples.", question="How many?", answers=("12", "twelve"))
TURNS = [("user", "Who stood?"), ("assistant", "The heron."), ("user", "Where?"), ("assistant", "In the water.")]


def learned(lm, made):
    return lm.tokenizer.decode([label for label in made.labels if label != IGNORE])


def test_the_answer_is_learned_with_its_end_and_nothing_else():
    lm = tiny_lm()
    made = document(EXAMPLE, wires.parse("text,mask=prefix"), lm)
    assert learned(lm, made) == " 12</s>"
    prompt = made.labels.count(IGNORE)
    assert made.blocks == [0] * prompt + [CAUSAL] * (len(made.ids) - prompt)
    assert all(label in (IGNORE, token) for label, token in zip(made.labels, made.ids, strict=True))


def test_a_choice_is_learned_as_its_gold_answer():
    lm = tiny_lm()
    example = Example(id="c", group="g", context="", question="How many?", choices=("5", "12"), gold=1)
    assert learned(lm, document(example, wires.parse("text"), lm)) == " 12</s>"


@pytest.mark.parametrize("template", [None, CHAT])
def test_every_turn_of_the_model_is_learned_and_every_user_turn_is_a_block(template):
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(chat=template)
    made = document(TURNS, wires.parse("text,mask=prefix"), lm)
    answers = learned(lm, made)
    assert "The heron." in answers
    assert "In the water." in answers
    assert "Who stood" not in answers
    assert len({block for block in made.blocks if block != CAUSAL}) == 2
    for label, block in zip(made.labels, made.blocks, strict=True):
        assert (block == CAUSAL) == (label != IGNORE)
    assert set(document(TURNS, wires.parse("text"), lm).blocks) == {CAUSAL}


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "Ada has 12.", "response": "Yes."},
        {"instruction": "How many?", "input": "Ada has 12.", "output": "12"},
        {"instruction": "How many?", "output": "12"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ],
)
def test_the_three_kinds_of_lines_are_read(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_text((json.dumps(line) + "\n") * 5)
    found = list(FileData(kind="file", path=path).sources("train", None, 2))
    assert len(found) == 3
    assert learned(tiny_lm(), document(found[0], wires.parse("text"), tiny_lm())).endswith("</s>")


def test_a_line_separator_of_unicode_ends_no_line(tmp_path):
    path = tmp_path / "data.jsonl"
    line = json.dumps({"prompt": "a\u2028b", "response": "c\u0085d"}, ensure_ascii=False)
    path.write_text(f"\ufeff{line}\n{line}\n", encoding="utf-8")
    (found,) = FileData(kind="file", path=path).sources("train", None, 1)
    assert found.question == "a\u2028b"


def test_a_conversation_over_another_wire_than_text_is_refused():
    with pytest.raises(UserError, match="expected text"):
        document(TURNS, wires.parse("none"), tiny_lm())


def test_held_out_lines_are_never_trained_on(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n}", "response": "r"}) + "\n" for n in range(50)))
    data = FileData(kind="file", path=path)
    train = {each.question for each in data.sources("train", None, 10)}
    held_out = {each.question for each in data.sources("validation", None, 10)}
    assert (len(train), len(held_out)) == (40, 10)
    assert not train & held_out


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "expected a readable file"),
        ("{oops\n", "line 1"),
        ('{"question": "q"}\n', "found question"),
        ('["list"]\n', "found list"),
        ('{"prompt": "p", "response": "r"}\n', "1 examples"),
        ('{"prompt": "p", "response": null}\n', "prompt without response"),
        ('{"prompt": "  ", "response": "r"}\n', "an empty prompt"),
        ('{"messages": [{"role": "user", "content": "q"}]}\n', "no turn of the assistant"),
        ('{"messages": [{"role": "user"}]}\n', "role and content"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_an_unusable_file_is_told_in_one_sentence(tmp_path, content, part):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        list(FileData(kind="file", path=path).sources("train", None, 1))
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_the_worlds_tasks_take_turns():
    data = WorldData(tasks=("one_hop", "sums"))
    ids = [each.id for each in data.sources("train", 6, 0)]
    assert [("one_hop" in each) for each in ids] == [True, False] * 3
    assert not set(ids) & {each.id for each in data.sources("validation", 50, 0)}

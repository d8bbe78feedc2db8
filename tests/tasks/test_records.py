"""Rows of every usual shape are read as what they are; unusable ones are skipped, counted and named."""

import pytest

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.records import read_records
from latentwire.tasks.rows import Row

TURNS = [("user", "Hi"), ("assistant", "Ho")]
SQUAD = {"text": ["a", "a", "b"], "answer_start": [0, 0, 1]}
HOTPOT = {"title": ["T", "U"], "sentences": [["One.", " Two."], ["Three."]]}
PARTS = [{"type": "text", "text": "Hi"}]


def read(*rows, fields=None, **options):
    return read_records([Row(n, f"f, line {n}", row) for n, row in enumerate(rows, 1)], "f", fields, **options)


@pytest.mark.parametrize(
    ("row", "context", "question", "answers"),
    [
        ({"context": "c", "question": "q", "answers": SQUAD}, "c", "q", ("a", "b")),
        ({"context": "c", "question": "q", "answers": ["a", "b"]}, "c", "q", ("a", "b")),
        ({"question": "q", "answer": "a #### 1"}, "", "q", ("a #### 1",)),
        ({"question": "q", "answer": "a", "context": HOTPOT}, "T: One. Two.\nU: Three.", "q", ("a",)),
        ({"instruction": "q", "input": "c", "output": "a", "text": "all of it"}, "c", "q", ("a",)),
        ({"instruction": "q", "input": None, "output": "a"}, "", "q", ("a",)),
        ({"instruction": "q", "context": "c", "response": "a", "category": "x"}, "c", "q", ("a",)),
        ({"prompt": "q", "completion": "a"}, "", "q", ("a",)),
        ({"prompt": "q", "response": "a"}, "", "q", ("a",)),
    ],
)
def test_questions_and_instructions_are_examples_whatever_their_columns(row, context, question, answers):
    (example,) = read(row).items
    assert (example.context, example.question, example.answers) == (context, question, answers)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "source": "x"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "Ho"}]},
    ],
)
def test_messages_and_sharegpt_are_conversations(row):
    assert read(row).items == [TURNS]


def test_choices_are_named_by_place_or_by_label():
    rows = [
        {"question": "q", "choices": ["a", "b"], "answer": 1},
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    ]
    plain, labelled = read(rows[0]).items[0], read(rows[1], fields={"gold": "answerKey"}).items[0]
    assert (plain.choices, plain.gold) == (labelled.choices, labelled.gold) == (("a", "b"), 1)


def test_columns_of_any_name_are_mapped_by_dotted_paths():
    (example,) = read(
        {"para": "c", "ask": {"text": "q"}, "reply": {"short": "a"}},
        fields={"context": "para", "question": "ask.text", "answers": "reply.short"},
    ).items
    assert (example.context, example.question, example.answers) == ("c", "q", ("a",))


def test_questions_about_one_passage_share_a_group_and_single_instructions_do_not():
    asked = read(*({"context": "c", "question": f"q{n}", "answers": ["a"]} for n in range(2))).items
    told = read(*({"input": "c", "instruction": f"q{n}", "output": "a"} for n in range(2))).items
    assert len({example.group for example in asked}) == 1
    assert len({example.group for example in told}) == 2
    assert len({example.id for example in asked}) == len({example.id for example in told}) == 2


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"question": "q", "answer": " "}, "an empty answer"),
        ({"question": "q", "answers": []}, "no answer"),
        ({"question": "q", "answer": 3}, "answer that is no text"),
        ({"question": "q"}, "question without answers or answer"),
        ({"instruction": "q", "output": ""}, "an empty output"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no turn of the user"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "user"}]}, "without role and content"),
        ({"messages": []}, "no list of turns"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "none of the choices"),
        ({"question": "q", "choices": "a", "answer": 0}, "fewer than two choices"),
        ({"title": "t"}, "the fields title"),
    ],
)
def test_unusable_rows_are_skipped_counted_and_named_up_to_a_share_and_refused_beyond_it(bad, reason):
    records = read(*[GOOD] * 9, bad, max_unusable=0.1)
    assert len(records.items) == 9
    assert "1 of 10 rows are skipped" in records.remark
    assert reason in records.remark
    assert "f, line 10" in records.remark
    with pytest.raises(UserError, match=r"line 9: .*2 of 10 rows cannot be used, expected at most 10%") as error:
        read(*[GOOD] * 8, bad, bad, max_unusable=0.1)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("fields", "part"),
    [({"answers": "anser"}, r"nearest: answer"), ({"reply": "answer"}, "fields: found 'reply', expected one of")],
)
def test_a_mapping_to_a_column_that_does_not_exist_is_refused(fields, part):
    with pytest.raises(UserError, match=part):
        read(GOOD, fields=fields)


def test_no_rows_at_all_are_refused_and_clean_ones_leave_no_remark():
    with pytest.raises(UserError, match="found no row"):
        read()
    assert read(GOOD).remark is None
    assert isinstance(read({"text": "Plain."}).items[0], str)
    assert isinstance(read(GOOD).items[0], Example)

"""A user's own file: what is right is read, and what is wrong is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.tasks import jsonl

SPAN = {"context": "Ann met Bob.", "question": "Whom?", "answers": ["Bob", "her Bob"]}
CHOICE = {"context": "Ann met Bob.", "question": "Whom?", "choices": ["Bob", "Cy"], "gold": 0}


def written(tmp_path, *rows) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def without(row, *fields):
    return {name: value for name, value in row.items() if name not in fields}


def test_answers_make_a_span_task_with_the_given_ids_and_groups(tmp_path):
    rows = [SPAN | {"id": "a", "group": "g", "title": "ignored"}, SPAN | {"id": 2, "group": 3, "choices": None}]
    task = jsonl.task(written(tmp_path, *rows), "mine")
    first, second = task.examples("validation")
    assert (task.name, task.answer) == ("mine", "span")
    assert (first.id, first.group, first.answers, first.gold) == ("a", "g", ("Bob", "her Bob"), -1)
    assert (second.id, second.group) == ("2", "3")
    assert task.examples("train") == [first, second]  # the file is the file


def test_worked_solutions_make_a_solution_task(tmp_path):
    solved = {"context": "Ann has 2.", "question": "?", "answers": ["1 + 1 = 2\n#### 2"]}
    assert (
        jsonl.task(written(tmp_path, solved, solved | {"answers": ["#### $1,200.50"]}), "mine").answer
        == "solution"
    )
    for other in (["2"], ["#### two"], ["#### 2", "2"]):
        assert jsonl.task(written(tmp_path, solved, solved | {"answers": other}), "mine").answer == "span"


@pytest.mark.parametrize("field", ["gold", "answer"])
def test_choices_make_a_choice_task(tmp_path, field):
    task = jsonl.task(written(tmp_path, without(CHOICE, "gold") | {field: 1}), "mine")
    (example,) = task.examples()
    assert task.answer == "choice"
    assert (example.choices, example.gold, example.answers) == (("Bob", "Cy"), 1, ())


def test_without_ids_examples_are_named_by_content_and_line_and_grouped_by_context(tmp_path):
    other, bare = SPAN | {"context": "Cy left."}, SPAN | {"context": ""}
    examples = jsonl.task(written(tmp_path, SPAN, SPAN, other, bare, bare), "mine").examples()
    assert len({e.id for e in examples}) == 5
    assert len({e.group for e in examples}) == 4  # two share a passage; no context is nothing to share
    assert examples[0].group == examples[1].group
    # Written down: an id must not change from one version to the next.
    assert examples[0].id == "e6d740d6d9343b5e-1"


def test_blank_lines_byte_order_marks_and_unicode_line_separators_do_no_harm(tmp_path):
    path = written(tmp_path, SPAN | {"context": "one\u2028two\x85three"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    (example,) = jsonl.task(path, "mine").examples()
    assert example.context == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(SPAN, "context"), "field 'context' is missing, found the fields: question, answers"),
        (without(SPAN, "question") | {"qestion": "?"}, "the unknown field 'qestion', expected 'question'"),
        (without(SPAN, "answers") | {"anwers": ["Bob"]}, "the unknown field 'anwers', expected 'answers'"),
        (SPAN | {"grp": "1"}, "the unknown field 'grp', expected 'group'"),
        (SPAN | {"answers": "Bob"}, "field 'answers': expected a valid list, found 'Bob'"),
        (SPAN | {"answers": ["Bob", 7]}, r"field 'answers\[1\]': expected a valid string, found 7"),
        (SPAN | {"answers": ["Bob", " "]}, r"field 'answers\[1\]'"),
        (SPAN | {"question": ""}, "field 'question'"),
        (SPAN | {"id": True}, "field 'id': expected a valid string, found True"),
        (SPAN | {"answers": []}, "either 'answers' or 'choices', not empty, found neither"),
        (without(SPAN, "answers") | {"answer": 0}, "either 'answers' or 'choices', not empty, found neither"),
        (SPAN | {"choices": ["Bob", "Cy"]}, "either 'answers' or 'choices', not empty, found both"),
        (SPAN | {"gold": 0}, "'gold' beside 'choices' only"),
        (CHOICE | {"gold": 2}, r"one of 'gold' and 'answer', from 0 to 1, found \[2\]"),
        (CHOICE | {"gold": -1}, r"one of 'gold' and 'answer', from 0 to 1, found \[-1\]"),
        (CHOICE | {"answer": 0}, r"one of 'gold' and 'answer', from 0 to 1, found \[0, 0\]"),
        (CHOICE | {"gold": "Bob"}, "field 'gold': expected a valid integer, found 'Bob'"),
        (CHOICE | {"gold": True}, "field 'gold': expected a valid integer, found True"),
        (without(CHOICE, "gold"), "one of 'gold' and 'answer', from 0 to 1, found neither"),
        (CHOICE | {"choices": ["Bob"]}, "two or more, all different"),
        (CHOICE | {"choices": ["Bob", "Bob"]}, "two or more, all different"),
        ([1], r"found list '\[1\]', expected a JSON object"),
    ],
)
def test_a_bad_line_is_refused_in_one_sentence_with_its_number(tmp_path, row, message):
    good = SPAN if "choices" not in row else CHOICE
    with pytest.raises(UserError, match=message) as error:
        jsonl.task(written(tmp_path, good, row), "mine")
    assert "mine.jsonl, line 2: " in str(error.value)
    assert "\n" not in str(error.value)


def test_an_id_that_comes_twice_is_refused_naming_both_lines(tmp_path):
    path = written(tmp_path, SPAN | {"id": 1}, SPAN | {"id": "1"})
    with pytest.raises(UserError, match="line 2: expected each id once, found '1' on line 1 too"):
        jsonl.task(path, "mine")


def test_answers_and_choices_in_one_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="line 2: expected 'answers' as on the lines before, found 'choices'"):
        jsonl.task(written(tmp_path, SPAN, CHOICE), "mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least one example, found none"),
        (b"\n \n", "at least one example, found none"),
        (b'\n{"context": ', "line 2: expected JSON, found invalid JSON"),
        (b'\n{"context": "caf\xe9"}', "line 2: expected UTF-8 text, found byte 0xe9 at offset 16"),
        (b'{"context": "\\ud800"}', "line 1: expected JSON, found invalid JSON"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        jsonl.task(path, "mine")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected a readable file, found: No such file"):
        jsonl.task(tmp_path / "none.jsonl", "mine")
    with pytest.raises(UserError, match="expected a file, found a folder"):
        jsonl.task(tmp_path, "mine")

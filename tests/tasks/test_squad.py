"""SQuAD files become the same examples for ever, and a bad file is told in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.tasks import squad as squad_files

DATA = Path(os.environ.get("LATENTWIRE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def question(id_, *answers, **fields):
    return {"id": id_, "question": f"Who is {id_}?", "answers": [{"text": a} for a in answers], **fields}


def squad(tmp_path, *paragraphs) -> Path:
    """A file with one article of (context, questions) paragraphs."""
    told = [{"context": context, "qas": questions} for context, questions in paragraphs]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": told}]}))
    return path


def test_examples_keep_ids_order_distinct_answers_and_the_group_of_their_paragraph(tmp_path):
    first = ("Ann met Bob.", [question("q1", "Ann", "Ann", "Bob"), question("q2", "Bob")])
    path = squad(tmp_path, first, ("Cy left.", [question("q3", "Cy")]))
    task = squad_files.task(path, "squad")
    found = task.examples("train")
    assert (task.name, task.answer) == ("squad", "span")
    assert [(e.id, e.answers, e.context) for e in found] == [
        ("q1", ("Ann", "Bob"), "Ann met Bob."),
        ("q2", ("Bob",), "Ann met Bob."),
        ("q3", ("Cy",), "Cy left."),
    ]
    assert found[0].group == found[1].group != found[2].group
    assert task.examples("test") == found  # the file is the file
    # Written down: a group's name must not change from one version to the next.
    assert found[0].group == "e008427354a01160"


def test_unanswerable_questions_are_left_out_and_counted_in_a_warning(tmp_path):
    path = squad(tmp_path, ("Ann.", [question("q1", "Ann"), question("q2", is_impossible=True)]))
    with pytest.warns(UserWarning, match="1 unanswerable questions are left out, 1 are kept"):
        task = squad_files.task(path, "squad")
    assert [e.id for e in task.examples()] == ["q1"]


@pytest.mark.filterwarnings("ignore:.*unanswerable")
@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "at least one answerable question, found none"),
        ([question("q1", is_impossible=True)], "at least one answerable question, found none"),
        ([question("q1")], "question 'q1' has no 'is_impossible', so expected texts under 'answers'"),
        ([question("q1", "  ")], "question 'q1' has no 'is_impossible', so expected texts under 'answers'"),
        ([question("q1", "Ann"), question("q1", "Ann")], "each question's id once, found 'q1' twice"),
        ([{"id": "q1", "qestion": "?"}], r"qas\[0\]\.question' is missing, .*nearest: qestion"),
        ([question("q1") | {"answers": "Ann"}], r"qas\[0\]\.answers': expected a valid array, found 'Ann'"),
        ([question(7, "Ann")], r"qas\[0\]\.id': expected a valid string, found 7"),
    ],
)
def test_a_bad_question_is_refused_in_one_sentence(tmp_path, questions, message):
    with pytest.raises(UserError, match=message) as error:
        squad_files.task(squad(tmp_path, ("Ann.", questions)), "squad")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": [', "Invalid JSON"),
        (b"[]", "found no row, expected at least one"),
        (b"{}", "field 'data' is missing, found the fields: none"),
        (b'{"data": "caf\xe9"}', "expected UTF-8 text, found byte 0xe9 at offset 13"),
    ],
)
def test_a_file_of_another_format_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "squad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        squad_files.task(path, "squad")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected a readable file, found: No such file"):
        squad_files.task(tmp_path / "none.json", "squad")
    with pytest.raises(UserError, match="expected a file, found a folder"):
        squad_files.task(tmp_path, "squad")


@pytest.mark.skipif(not (DATA / "xquad_en.json").exists(), reason="real data is not here")
def test_xquad_is_read_whole_and_every_passage_contains_its_answers():
    examples = squad_files.task(DATA / "xquad_en.json", "squad").examples()
    assert (len(examples), len({e.group for e in examples})) == (1190, 240)
    assert all(answer in e.context for e in examples for answer in e.answers)

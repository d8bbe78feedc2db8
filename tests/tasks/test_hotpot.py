"""HotpotQA's official file becomes questions over titled paragraphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.tasks import resolve

ROW: dict[str, Any] = {
    "_id": "5a8b",
    "question": "In which town does Ada's brother live?",
    "answer": "Tarn",
    "type": "bridge",
    "context": [["Ada", ["Ada is a pilot.", " Her brother is Bob."]], ["Bob", ["Bob lives in Tarn."]]],
}


def read(tmp_path: Path, rows: Any) -> Any:
    path = tmp_path / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps(rows))
    (task,) = resolve(["hotpotqa"], path)
    return task


def test_paragraphs_follow_their_titles_in_the_files_order(tmp_path: Path) -> None:
    task = read(tmp_path, [ROW, ROW | {"_id": "other"}])
    first, second = task.examples()
    assert first.context == "Ada: Ada is a pilot. Her brother is Bob.\nBob: Bob lives in Tarn."
    assert (first.id, first.question, first.answers) == ("5a8b", ROW["question"], ("Tarn",))
    assert first.group == second.group
    assert task.answer == "span"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "expected at least one question"),
        ([ROW, ROW], "expected each question's id once, found '5a8b' twice"),
        ([{key: value for key, value in ROW.items() if key != "answer"}], "'.*answer' is missing"),
        ([ROW | {"context": "Ada"}], "context"),
        ({"data": []}, "field 'the whole'"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path: Path, rows: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path, rows)
    assert "\n" not in str(error.value)

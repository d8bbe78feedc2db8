"""Single faults that were found in the project, each with its right value."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from latentwire.cli import entry
from latentwire.errors import UserError
from latentwire.tasks import resolve
from latentwire.tasks.base import examples_sha256
from latentwire.tasks.data_files import _IN_WORDS
from latentwire.tasks.floors import type_floor

ROW = {"context": "Ada lives in Tarn.", "question": "Where?", "answers": ["Tarn"]}


def test_excluding_the_named_persons_own_value_earns_more_than_the_type_floor_of_two_hop() -> None:
    (task,) = resolve(["two_hop"], None)
    examples = task.examples("test", 200)
    earned = 0.0
    for example in examples:
        name = re.search(r"of (\w+)", example.question)
        assert name is not None
        sentences = example.context.split(". ")
        own = [
            value
            for value in example.candidates
            if any(name[1] in sentence and re.search(rf"\b{value}\b", sentence) for sentence in sentences)
        ]
        assert len(own) == 1
        assert own[0] not in example.answers, "the named person's own value is never the answer"
        earned += 1 / (len(example.candidates) - 1)
    assert earned / len(examples) == pytest.approx(1 / 5)
    assert type_floor(examples) < 1 / 5
    assert "is never the answer" in (type_floor.__doc__ or ""), "the floor says what it does not bound"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), None])
def test_too_little_memory_ends_in_one_sentence(
    error: Exception | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        if error is not None:
            raise error
        return len(torch.empty(2**55, dtype=torch.uint8))  # what PyTorch itself says of main memory

    assert entry.ended(work) == 1
    said = capsys.readouterr().err
    assert said.startswith("latentwire: there is not enough memory")
    assert said.count("\n") == 1


def test_the_help_says_that_code_of_yaml_tasks_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latentwire", "eval", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        entry.main()
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "Their !function code is run: name only a folder that you trust." in text


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_answer_is_refused_in_words(blank: str, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({**ROW, "answers": [blank]}) + "\n")
    with pytest.raises(UserError, match="expected text that is not blank, found") as refused:
        resolve(["jsonl"], file)
    assert not any(pattern in str(refused.value) for pattern in _IN_WORDS if len(pattern) > 1)


def test_a_file_of_rows_is_read_once_for_all_that_ask(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    (task,) = resolve(["jsonl"], file)
    file.unlink()  # whoever opens it again fails
    assert len(task.examples("test")) == len(task.examples("validation", 1)) == 1
    assert examples_sha256(task.examples("test")) == examples_sha256(task.examples("test"))

"""Benchmark documents from their official release files, under the field names that lm-eval's tasks expect.

Only the documents come from here; how they are worded is lm-eval's own definition, see `harness`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from latentwire.errors import UserError
from latentwire.tasks.data_files import decode, first_mistake, read_bytes

Document = dict[str, Any]
R = TypeVar("R", bound=BaseModel)

_Text = Annotated[str, StringConstraints(pattern=r"\S")]
_OBQA_COLUMNS = ("ID", "Question Stem", "Choices", "Answer Key")
_LABELLED = re.compile(r"\(([A-D])\)\s")


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Piqa(_Row):
    goal: str
    sol1: _Text
    sol2: _Text


class _Winogrande(_Row):
    sentence: Annotated[str, StringConstraints(pattern="_")]
    option1: _Text
    option2: _Text


class _Hellaswag(_Row):
    activity_label: str
    ctx_a: str
    ctx_b: str
    endings: list[_Text] = Field(min_length=2)
    label: Annotated[int, Field(ge=0)]


class _Gsm8k(_Row):
    question: _Text
    answer: Annotated[str, StringConstraints(pattern=r"####\s*[-+$]*[0-9.]")]


class _Choice(_Row):
    text: _Text
    label: _Text


class _Question(_Row):
    stem: _Text
    choices: list[_Choice] = Field(min_length=2)


class _Science(_Row):
    question: _Question
    answerKey: str


@dataclass(frozen=True)
class Release:
    """A benchmark's official files.

    Attributes:
        names: what the evaluated file may be called in a folder; the first that exists is taken.
        read: from that file to its documents.
        labels: whether the answers are in a file of their own, `NAME-labels.lst`.
        train: whether the definition draws worked examples from a train file; beside `x_test.jsonl` that is
            `x_train.jsonl`.
    """

    names: tuple[str, ...]
    read: Callable[[Path], list[Document]]
    labels: bool = False
    train: bool = False


def files(kind: str, data: Path) -> dict[str, Path]:
    """The files that `kind` is read from, by what they hold.

    `documents` is `data` or a file in that folder; `labels`, where they are in a file of their own; `train`, from
    which worked examples are drawn, where the definition wants it and the file exists.

    Example:
        >>> files("gsm8k", Path("data"))

    Raises:
        UserError: the folder holds none of them.
    """
    release = RELEASES[kind]
    path = data
    if data.is_dir():
        there = [data / name for name in release.names if (data / name).is_file()]
        if not there:
            raise UserError(
                f"data: expected {' or '.join(release.names)} for {kind} in {data}, found none of them."
            )
        path = there[0]
    parts = {"documents": path}
    if release.labels:
        parts["labels"] = _labels_of(path)
    train = path.with_name(path.name.replace("test", "train"))
    if release.train and train != path and train.is_file():
        parts["train"] = train
    return parts


def documents(kind: str, data: Path) -> list[Document]:
    """The documents of a benchmark, in the order of the file.

    Example:
        >>> documents("openbookqa", Path("openbookqa_test.tsv"))[0]["question_stem"]

    Raises:
        UserError: a file is missing, cannot be read, has another format or holds no document.
    """
    return _read(kind, files(kind, data)["documents"])


def training(kind: str, data: Path) -> list[Document]:
    """The documents that worked examples are drawn from; none where there is no such file.

    Raises:
        UserError: as `documents`.
    """
    train = files(kind, data).get("train")
    return [] if train is None else _read(kind, train)


def _read(kind: str, path: Path) -> list[Document]:
    found = RELEASES[kind].read(path)
    if not found:
        raise UserError(f"{path}: expected at least one document, found none.")
    return found


def _labels_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-labels.lst")


def _lines(path: Path) -> list[tuple[str, str]]:
    """The place and text of every line that is not empty; at least one."""
    text = [(number, line) for number, line in enumerate(read_bytes(path).split(b"\n"), start=1) if line.strip()]
    if not text:
        raise UserError(f"{path}: expected at least one line, found none.")
    places = [f"{path}, line {number}" for number, _ in text]
    return [(where, decode(line, where).rstrip("\r")) for where, (_, line) in zip(places, text, strict=True)]


def _rows(path: Path, row: type[R]) -> list[tuple[str, R]]:
    rows = []
    for where, line in _lines(path):
        try:
            rows.append((where, row.model_validate_json(line)))
        except ValidationError as error:
            raise UserError(f"{where}: {first_mistake(error)}") from error
    return rows


def _labels(path: Path, count: int, valid: Sequence[str]) -> list[str]:
    """One label for each of the `count` documents of `path`."""
    lines = _lines(_labels_of(path))
    for where, line in lines:
        if line.strip() not in valid:
            raise UserError(f"{where}: expected one of {', '.join(valid)}, found {line.strip()[:60]!r}.")
    if len(lines) != count:
        raise UserError(f"{_labels_of(path)}: expected {count} labels, one a document, found {len(lines)}.")
    return [line.strip() for _, line in lines]


def _piqa(path: Path) -> list[Document]:
    rows = _rows(path, _Piqa)
    labels = _labels(path, len(rows), ("0", "1"))
    return [{**row.model_dump(), "label": int(label)} for (_, row), label in zip(rows, labels, strict=True)]


def _winogrande(path: Path) -> list[Document]:
    rows = _rows(path, _Winogrande)
    labels = _labels(path, len(rows), ("1", "2"))
    return [{**row.model_dump(), "answer": label} for (_, row), label in zip(rows, labels, strict=True)]


def _hellaswag(path: Path) -> list[Document]:
    rows = _rows(path, _Hellaswag)
    for where, row in rows:
        if row.label >= len(row.endings):
            raise UserError(f"{where}: field 'label': expected 0 to {len(row.endings) - 1}, found {row.label}.")
    return [{**row.model_dump(), "label": str(row.label)} for _, row in rows]


def _gsm8k(path: Path) -> list[Document]:
    return [row.model_dump() for _, row in _rows(path, _Gsm8k)]


def _arc(path: Path) -> list[Document]:
    return [_science(where, row, "question") for where, row in _rows(path, _Science)]


def _science(where: str, row: _Science, field: str) -> Document:
    """A question in AllenAI's format; `field` is what the hub's dataset calls its stem."""
    question = row.question
    labels = [choice.label for choice in question.choices]
    if labels.count(row.answerKey) != 1:
        raise UserError(
            f"{where}: field 'answerKey': expected one of {', '.join(labels)}, found {row.answerKey!r}."
        )
    choices = {"text": [choice.text for choice in question.choices], "label": labels}
    return {field: question.stem, "choices": choices, "answerKey": row.answerKey}


def _openbookqa(path: Path) -> list[Document]:
    if path.suffix == ".jsonl":
        return [_science(where, row, "question_stem") for where, row in _rows(path, _Science)]
    lines = _lines(path)
    header = lines[0][1].split("\t")
    if missing := [name for name in _OBQA_COLUMNS if name not in header]:
        raise UserError(f"{path}: expected the columns {', '.join(_OBQA_COLUMNS)}, found no {missing[0]!r}.")
    stem, choices, key = (header.index(name) for name in _OBQA_COLUMNS[1:])
    examples = []
    for where, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise UserError(f"{where}: expected {len(header)} cells between tabs, found {len(cells)}.")
        before, *parts = _LABELLED.split(cells[choices])
        labels, texts = parts[::2], [text.strip() for text in parts[1::2]]
        if before.strip() or labels != list("ABCD") or not all(texts):
            raise UserError(f"{where}: expected choices '(A) … (B) … (C) … (D) …', found {cells[choices][:60]!r}.")
        answers = [_Choice(text=text, label=label) for text, label in zip(texts, labels, strict=True)]
        question = _Question(stem=cells[stem], choices=answers)
        item = _Science(question=question, answerKey=cells[key].strip())
        examples.append(_science(where, item, "question_stem"))
    return examples


RELEASES = {
    "piqa": Release(("piqa_valid.jsonl", "valid.jsonl", "dev.jsonl"), _piqa, labels=True),
    "hellaswag": Release(("hellaswag_val.jsonl",), _hellaswag),
    "arc_easy": Release(("ARC-Easy-Test.jsonl", "arc_easy_test.jsonl"), _arc),
    "arc_challenge": Release(("ARC-Challenge-Test.jsonl", "arc_challenge_test.jsonl"), _arc),
    "winogrande": Release(("winogrande_dev.jsonl", "dev.jsonl"), _winogrande, labels=True),
    "openbookqa": Release(("openbookqa_test.tsv", "test.tsv", "openbookqa_test.jsonl"), _openbookqa),
    "gsm8k": Release(("gsm8k_test.jsonl", "test.jsonl"), _gsm8k, train=True),
}
"""By lm-eval's name of the task. In a folder the file of the split that lm-eval evaluates is taken."""

"""Instruction rows as training data, from a file or from the hub."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split
from latentwire.training.data.base import ContextExamples, Source, TrainingData


class _Instructions(TrainingData):
    """Rows of `prompt/response`, `instruction/input/output` or chat `messages`.

    The last rows of a fixed shuffle are held out for evaluation.
    """

    @property
    @abstractmethod
    def place(self) -> str:
        """What errors call the source."""

    @abstractmethod
    def rows(self) -> Iterable[dict[str, Any]]:
        """The rows, checked."""

    def sources(self, split: Split, limit: int | None, held_out: int) -> Iterator[Source]:
        rows = list(self.rows())
        if len(rows) <= held_out:
            raise UserError(
                f"data: {self.place} has {len(rows)} examples, expected more than the {held_out} held out."
            )
        random.Random("held out").shuffle(rows)
        chosen = rows[-held_out:] if split == "validation" else rows[:-held_out]
        return (_source(row, f"{self.place}/{at}") for at, row in enumerate(chosen[:limit]))

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        raise UserError(
            f"data: found kind {self.kind}, whose rows are instructions; expected world, task or text."
        )


class FileData(_Instructions):
    """JSONL lines of `prompt/response`, `instruction/input/output` or chat `messages`.

    The last `eval_samples` lines of a fixed shuffle are held out for evaluation.
    """

    kind: Literal["file"]
    path: Path

    @property
    def place(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[dict[str, Any]]:
        # Not splitlines: a text may hold a line separator of Unicode, which ends no line here.
        for number, line in enumerate(_text(self.path).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: expected JSON, found an error: {error}.") from error
            _check_fields(row, where)
            yield row

    def files(self) -> dict[str, Path]:
        return {"": self.path}

    def identity(self, files: Mapping[str, str]) -> Any:
        return files[""]


class HubData(_Instructions):
    """A dataset of the hub with rows like those of `FileData`; needs the `datasets` package."""

    kind: Literal["hub"]
    name: str
    split: str = "train"

    @property
    def place(self) -> str:
        return self.name

    def rows(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UserError("data: a hub dataset needs the `datasets` package; pip install datasets.") from error
        try:
            rows: Iterable[dict[str, Any]] = load_dataset(self.name, split=self.split)
        except Exception as error:  # its errors have no common class, and all of them mean the same here
            raise UserError(
                f"data: {self.name} cannot be loaded from the hub: {str(error).splitlines()[0]}"
            ) from error
        for number, row in enumerate(rows):
            _check_fields(row, f"{self.name}, line {number}")
            yield row

    def identity(self, files: Mapping[str, str]) -> Any:
        return self.model_dump(mode="json")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: {path} cannot be read as UTF-8 text: {error}.") from error


def _check_fields(row: Any, where: str) -> None:
    if isinstance(row, dict):
        for names in (("prompt", "response"), ("instruction", "output")):
            if row.keys() >= set(names):
                _check_texts({name: row[name] for name in names}, where)
                return
        if isinstance(row.get("messages"), list) and row["messages"]:
            _check_turns(row["messages"], where)
            return
    keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
    raise UserError(f"{where}: found {keys}, expected prompt and response, instruction and output, or messages.")


def _check_texts(fields: dict[str, Any], where: str) -> None:
    for name, value in fields.items():
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}, {name}: found {value!r}, expected a text that is not empty.")


def _check_turns(turns: list[Any], where: str) -> None:
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise UserError(f"{where}, messages: found {str(turn)[:60]}, expected objects with role and content.")
        _check_texts({"role": turn["role"], "content": turn["content"]}, where)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise UserError(f"{where}, messages: found no turn of the assistant, expected one to learn from.")


def _source(row: dict[str, Any], name: str) -> Source:
    if "messages" in row:
        return [(str(turn["role"]), str(turn["content"])) for turn in row["messages"]]
    context, question, answer = (
        ("", row["prompt"], row["response"])
        if "prompt" in row
        else (row.get("input") or "", row["instruction"], row["output"])
    )
    return Example(id=name, group=name, context=context, question=question, answers=(answer,))

"""Unlabelled text as training data: a piece of it is the context, what follows is the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split
from latentwire.tasks.data_files import decode, digest, read_bytes
from latentwire.training.data.base import HELD_OUT, ContextExamples, TrainingData


class TextData(TrainingData):
    """Unlabelled text: the reader continues it after the latents of what comes before (self-study).

    One text in twenty, chosen by hash and at least one, is held out for evaluation.

    Attributes:
        path: JSONL lines with a `text` each, or a file of any other ending with one text a line.
        context: words of a piece that are encoded.
        continuation: at most this many words after them are the answer.
    """

    kind: Literal["text"]
    path: Path
    context: int = Field(default=128, ge=1)
    continuation: int = Field(default=64, ge=1)

    asks: ClassVar[bool] = False

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        # By hash: copies of a text are one text, and adding others moves none to the other side.
        texts = sorted({digest(text): text for text in _texts(self.path)}.items())
        held_out = -(-len(texts) // HELD_OUT) if len(texts) > 1 else 0
        chosen = texts[held_out:] if split == "train" else texts[:held_out]
        pieces = (piece for name, text in chosen for piece in self._pieces(name, text))
        first = next(pieces, None)
        if first is None:
            raise UserError(
                f"data.path: found {len(texts)} different texts in {self.path} and none of the {split} split with "
                f"more than {self.context} words, expected some on both sides."
            )
        for example in islice((each for part in ([first], pieces) for each in part), start, None):
            yield ContextExamples([example], continues=True)

    def files(self) -> dict[str, Path]:
        return {"": self.path}

    def identity(self, files: Mapping[str, str]) -> Any:
        return [files[""], self.context, self.continuation]

    def _pieces(self, name: str, text: str) -> Iterator[Example]:
        starts: Sequence[int] = [match.start() for match in re.finditer(r"\S+", text)]
        size = self.context + self.continuation
        for at in range(0, len(starts) - self.context, size):
            middle, end = starts[at + self.context], [*starts, len(text)][min(at + size, len(starts))]
            context, continuation = text[starts[at] : middle].rstrip(), text[middle:end].rstrip()
            yield Example(id=f"{name}/{at}", group=name, context=context, question="", answers=(continuation,))


def _texts(path: Path) -> Iterator[str]:
    for number, line in enumerate(decode(read_bytes(path), str(path)).split("\n"), start=1):
        if not line.strip():
            continue
        yield _field(line, f"{path}, line {number}") if path.suffix == ".jsonl" else line.strip()


def _field(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{where}: expected an object with a "text", found {line[:60]!r}.') from error
    if not isinstance(text, str):
        raise UserError(f"{where}: text: expected a string, found {text!r}.")
    return text.strip()

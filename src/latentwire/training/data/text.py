"""Unlabelled text as training data: a piece of it is the context, what follows is the answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split
from latentwire.tasks.data_files import decode, digest, read_bytes
from latentwire.tasks.hub import hub_rows, named
from latentwire.tasks.rows import TABLES, Row, read_rows, suffix
from latentwire.training.data.base import HELD_OUT, ContextExamples, TrainingData


class TextData(TrainingData):
    """Unlabelled text: the reader continues it after the latents of what comes before (self-study).

    One text in twenty, chosen by hash and at least one, is held out for evaluation.

    Attributes:
        path: a table with a column `text` (JSON Lines, JSON, CSV, TSV, Parquet, also as `.gz` or `.xz`), or a file
            of any other ending with one text a line.
        name, config, split, revision: instead of `path`, a dataset of the hub, as of `HubData`.
        fields: `{text: COLUMN}` where the column is called otherwise.
        context: words of a piece that are encoded.
        continuation: at most this many words after them are the answer.
    """

    kind: Literal["text"]
    path: Path | None = None
    name: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    context: int = Field(default=128, ge=1)
    continuation: int = Field(default=64, ge=1)

    asks: ClassVar[bool] = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.name is None):
            raise ValueError(
                "found both or neither of path and name, expected one of them: where the text is from"
            )
        return self

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        # By hash: copies of a text are one text, and adding others moves none to the other side.
        texts = sorted({digest(text): text for text in self._texts()}.items())
        held_out = -(-len(texts) // HELD_OUT) if len(texts) > 1 else 0
        chosen = texts[held_out:] if split == "train" else texts[:held_out]
        pieces = (piece for name, text in chosen for piece in self._pieces(name, text))
        first = next(pieces, None)
        if first is None:
            field = "name" if self.path is None else "path"
            raise UserError(
                f"data.{field}: found {len(texts)} different texts in {self.place} and none of the {split} split "
                f"with more than {self.context} words, expected some on both sides."
            )
        for example in islice((each for part in ([first], pieces) for each in part), start, None):
            yield ContextExamples([example], continues=True)

    @property
    def place(self) -> str:
        """What messages call the source."""
        return str(self.path or self.name)

    def files(self) -> dict[str, Path]:
        return {} if self.path is None else {"": self.path}

    def identity(self, files: Mapping[str, str]) -> Any:
        if self.path is None:
            sha256 = hashlib.sha256("\0".join(self._texts()).encode()).hexdigest()
            return [self.model_dump(mode="json", exclude_defaults=True), sha256]
        own = [dict(self.fields)] if self.fields else []
        return [files[""], self.context, self.continuation, *own]

    def _texts(self) -> Iterator[str]:
        if self.path is not None and suffix(self.path) not in TABLES:
            lines = decode(read_bytes(self.path), str(self.path)).split("\n")
            return (line.strip() for line in lines if line.strip())
        if self.path is not None:
            rows, column = read_rows(self.path), self.fields.get("text", "text")
        else:
            dataset = named(str(self.name), self.config, self.split, self.revision, self.fields)
            rows, column = hub_rows(dataset), dataset.fields.get("text", "text")
        return (_text(row, column) for row in rows)

    def _pieces(self, name: str, text: str) -> Iterator[Example]:
        starts: Sequence[int] = [match.start() for match in re.finditer(r"\S+", text)]
        size = self.context + self.continuation
        for at in range(0, len(starts) - self.context, size):
            middle, end = starts[at + self.context], [*starts, len(text)][min(at + size, len(starts))]
            context, continuation = text[starts[at] : middle].rstrip(), text[middle:end].rstrip()
            yield Example(id=f"{name}/{at}", group=name, context=context, question="", answers=(continuation,))


def _text(row: Row, column: str) -> str:
    text = row.fields.get(column)
    if not isinstance(text, str):
        found = repr(text) if column in row.fields else f"the columns {', '.join(row.fields)}"
        raise UserError(
            f'{row.where}: found {found[:60]}, expected a text as "{column}"; name another column by fields.text.'
        )
    return text.strip()

"""Rows of questions, instructions or conversations as training data, from a file or from the hub."""

from __future__ import annotations

import hashlib
import json
import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split
from latentwire.tasks.hub import hub_rows, named
from latentwire.tasks.records import Record, Records, read_records
from latentwire.tasks.rows import Row, read_rows
from latentwire.training.data.base import ContextExamples, Source, TrainingData, held_out


class RowData(TrainingData):
    """Rows of any shape that `tasks.records` knows.

    Attributes:
        fields: for what is called otherwise than expected, the column that holds it, such as
            `{answers: reply.text}`.
        max_unusable: up to this share of the rows, unusable ones (an empty answer, no turn of the user) are
            skipped and counted; beyond it the data is refused.
    """

    fields: dict[str, str] = Field(default_factory=dict)
    max_unusable: float = Field(default=0.05, ge=0, lt=1)

    @property
    @abstractmethod
    def place(self) -> str:
        """What messages call the source."""

    @property
    @abstractmethod
    def own_validation(self) -> bool:
        """Whether validation rows come from elsewhere, so that none are held out."""

    @abstractmethod
    def records(self, split: Split) -> Records:
        """What the rows of a split hold; those of both splits where none is kept apart."""

    def remarks(self) -> list[str]:
        remarks = [
            self.records(split).remark
            for split in (("train", "validation") if self.own_validation else ("train",))
        ]
        return [f"{self.place}: {remark}" for remark in remarks if remark]

    def sources(self, split: Split, limit: int | None, held_out: int) -> Iterator[Source]:
        """Documents in a fixed order.

        Without validation rows of its own, the last ones of a fixed shuffle are held out; rows that share a group
        (a passage) stay together.
        """
        items = self.records(split).items
        if self.own_validation:
            return islice(map(self._source, items), limit)
        if len(items) <= held_out:
            raise UserError(
                f"data: {self.place} has {len(items)} examples, expected more than the {held_out} held out."
            )
        groups: dict[str, list[Record]] = {}
        for number, item in enumerate(items):
            groups.setdefault(item.group if isinstance(item, Example) else str(number), []).append(item)
        shuffled = list(groups.values())
        random.Random("held out").shuffle(shuffled)
        ordered = [item for group in shuffled for item in group]
        count = 0
        while count < held_out:
            count += len(shuffled.pop())
        kept = len(ordered) - count
        if not kept:
            raise UserError(
                f"data: {self.place} has no group of examples left beside the {held_out} held out, expected more "
                "groups, or validation rows of its own."
            )
        chosen = ordered[kept:] if split == "validation" else ordered[:kept]
        return islice(map(self._source, chosen), limit)

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        """Contexts with their questions. Without validation rows of its own, one group in twenty is held out."""
        items = [self._example(item) for item in self.records(split).items]
        chosen = (item for item in items if self.own_validation or held_out(item) == (split != "train"))
        shared = groupby(chosen, key=lambda example: (example.group, example.context))
        return islice((ContextExamples(list(examples)) for _, examples in shared), start, None)

    def _source(self, item: Record) -> Source:
        if isinstance(item, str):
            raise UserError(
                f"data: {self.place} holds plain text, expected questions, instructions or conversations."
            )
        return item

    def _example(self, item: Record) -> Example:
        if not isinstance(item, Example):
            shape = "plain text (write kind: text)" if isinstance(item, str) else "conversations"
            raise UserError(
                f"data: {self.place} holds {shape}, expected rows with context, question and answers for a wire."
            )
        return item


class FileData(RowData):
    """A file of rows: JSON, JSON Lines, CSV, TSV or Parquet, also as `.gz` or `.xz`.

    Attributes:
        path: the rows to train on.
        validation: rows to evaluate on during training. Without it some of `path` are held out: for a finetuning
            the last `eval_samples` of a fixed shuffle, for a wire one group in twenty.
    """

    kind: Literal["file"]
    path: Path
    validation: Path | None = None

    @property
    def place(self) -> str:
        return str(self.path)

    @property
    def own_validation(self) -> bool:
        return self.validation is not None

    def records(self, split: Split) -> Records:
        path = self.path if split == "train" or self.validation is None else self.validation
        return _file_records(path, _version(path), tuple(self.fields.items()), self.max_unusable)

    def files(self) -> dict[str, Path]:
        return {"": self.path} if self.validation is None else {"": self.path, "validation": self.validation}

    def identity(self, files: Mapping[str, str]) -> Any:
        hashes = list(files.values())
        if self.fields or len(hashes) > 1:
            return [*hashes, dict(self.fields)]
        return hashes[0]


class HubData(RowData):
    """A dataset of the hub, by its id or a short name (`tasks.hub.SHORT_NAMES`); needs the `datasets` package.

    Attributes:
        name: `squad`, `rajpurkar/squad`, or a local folder that `datasets` can read.
        config: its configuration, where it has several.
        split: the rows to train on; slices such as `train[:5000]` work.
        revision: a branch, tag or commit.
        validation_split: rows to evaluate on during training; without it some are held out, as of a file.
    """

    kind: Literal["hub"]
    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    validation_split: str | None = None

    @property
    def place(self) -> str:
        return self.name

    @property
    def own_validation(self) -> bool:
        return self.validation_split is not None

    def records(self, split: Split) -> Records:
        return self._read(split)[0]

    def identity(self, files: Mapping[str, str]) -> Any:
        """Name and settings, and the SHA-256 of the rows: the same name may give other rows tomorrow."""
        splits: list[Split] = ["train", "validation"] if self.own_validation else ["train"]
        settings = self.model_dump(mode="json", exclude={"max_unusable"}, exclude_defaults=True)
        return {**settings, "rows": [self._read(split)[1] for split in splits]}

    def _read(self, split: Split) -> tuple[Records, str]:
        part = self.split if split == "train" or self.validation_split is None else self.validation_split
        return _hub_records(
            self.name, self.config, part, self.revision, tuple(self.fields.items()), self.max_unusable
        )


def _version(path: Path) -> tuple[int, int]:
    """Changes when the file does. A missing file is reported where it is read."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4)
def _file_records(
    path: Path, version: tuple[int, int], fields: tuple[tuple[str, str], ...], max_unusable: float
) -> Records:
    return read_records(read_rows(path), str(path), dict(fields), max_unusable)


@lru_cache(maxsize=2)
def _hub_records(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    fields: tuple[tuple[str, str], ...],
    max_unusable: float,
) -> tuple[Records, str]:
    """What the rows hold, and their SHA-256."""
    dataset = named(name, config, split, revision, dict(fields))
    sha256 = hashlib.sha256()

    def hashed(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            sha256.update(json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str).encode())
            yield row

    records = read_records(hashed(hub_rows(dataset)), name, dataset.fields, max_unusable)
    return records, sha256.hexdigest()

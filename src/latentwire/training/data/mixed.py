"""Several files or datasets as one source of training documents."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from latentwire.kinds import KindOf
from latentwire.tasks.base import Split
from latentwire.training.data.base import ContextExamples, Source, TrainingData
from latentwire.training.data.row_data import FileData, HubData

Part = Annotated[FileData | HubData, KindOf(TrainingData)]


class MixedData(TrainingData):
    """Several sources that take turns, one document each, such as instructions and questions about passages.

    Any number of documents holds equal parts of every source, until one of them has no more. Each source is put
    into a fixed random order first, so that a file in the order of its articles gives a sample of all of them.

    Attributes:
        parts: the sources, of kind `file` or `hub`. Held-out documents are equal parts of them too.
    """

    kind: Literal["mixed"]
    parts: tuple[Part, ...] = Field(min_length=2)

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        return islice(chain.from_iterable(part.contexts(split) for part in self.parts), start, None)

    def sources(self, split: Split, limit: int | None, held_out: int) -> Iterator[Source]:
        share = -(-held_out // len(self.parts))
        return islice(_in_turns([_shuffled(part, split, share) for part in self.parts]), limit)

    def files(self) -> dict[str, Path]:
        return {
            f"{at} {what}".rstrip(): path
            for at, part in enumerate(self.parts)
            for what, path in part.files().items()
        }

    def remarks(self) -> list[str]:
        return [remark for part in self.parts for remark in part.remarks()]

    def identity(self, files: Mapping[str, str]) -> Any:
        return [
            part.identity({what: files[f"{at} {what}".rstrip()] for what in part.files()})
            for at, part in enumerate(self.parts)
        ]


def _shuffled(part: FileData | HubData, split: Split, held_out: int) -> list[Source]:
    every = list(part.sources(split, None, held_out))
    random.Random(f"mixed/{split}").shuffle(every)
    return every


def _in_turns(sources: list[list[Source]]) -> Iterator[Source]:
    for at in range(max(map(len, sources))):
        yield from (source[at] for source in sources if at < len(source))

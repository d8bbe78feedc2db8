"""Unlabelled text as passages: what comes first is the context, what follows is the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from latentwire.errors import UserError
from latentwire.tasks.base import Split
from latentwire.tasks.files import decode, digest, read_bytes
from latentwire.training.wire.config import TextPassages

KEPT = 20
"""One text in so many is kept for evaluation."""


def pieces(data: TextPassages, split: Split, count: int) -> list[tuple[str, str, str]]:
    """The first `count` pieces: a name of their text, the context, and what follows it.

    Raises:
        UserError: the file cannot be read, or its texts are too few or too short.
    """
    # By hash: copies of a text are one text, and adding others moves none to the other side.
    texts = sorted({digest(text): text for text in _texts(data.path)}.items())
    held_out = -(-len(texts) // KEPT) if len(texts) > 1 else 0
    chosen = texts[held_out:] if split == "train" else texts[:held_out]
    found = list(islice((piece for each in chosen for piece in _cut(data, *each)), count))
    if not found:
        raise UserError(
            f"data.path: found {len(texts)} different texts in {data.path} and none of the {split} split with "
            f"more than {data.context} words, expected some on both sides."
        )
    return found


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


def _cut(data: TextPassages, name: str, text: str) -> Iterator[tuple[str, str, str]]:
    starts: Sequence[int] = [match.start() for match in re.finditer(r"\S+", text)]
    size = data.context + data.continuation
    for at in range(0, len(starts) - data.context, size):
        middle, end = starts[at + data.context], [*starts, len(text)][min(at + size, len(starts))]
        yield name, text[starts[at] : middle].rstrip(), text[middle:end].rstrip()

"""Tokenized passages on disk, so that the second training on a file starts at once.

One file for each combination of data, tokenizers, prompt formats and split. Losing the folder costs time, nothing
else: `LATENTWIRE_CACHE`, or `~/.cache/latentwire`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from latentwire.files import beside, cache_folder, tidy
from latentwire.tasks.base import Split
from latentwire.training.data import PassageData
from latentwire.training.wire.asking import Asking
from latentwire.training.wire.passage import Passage
from latentwire.version import __version__

FEWEST = 1000
"""Fewer passages are made faster than it is worth keeping them."""
KEPT = 8
"""Files that are kept, the newest ones."""


def folder() -> Path:
    """Where the files lie."""
    return cache_folder() / "passages"


def key(data: PassageData, tokenizing: Mapping[str, Asking], split: Split) -> str:
    """A digest of everything that makes the passages of a split what they are: files, tokenizers, settings."""
    hashes = {part: _sha256(path) for part, path in data.files().items()}
    known = [
        __version__,
        split,
        data.kind,
        data.identity(hashes),
        {name: asking.identity for name, asking in tokenizing.items()},
    ]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Cached:
    """Passages as they were made. remarks: what was said about their data."""

    passages: list[Passage]
    remarks: list[str]


def load(key_: str, count: int) -> Cached | None:
    """The first `count` passages; None if the cache does not hold them, or its file is damaged."""
    path = _path(key_)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            known = json.loads(file.metadata()["passages"])
            if known["count"] < count and not known["complete"]:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        packed = Packed(known["count"], known["readers"], known["after_latents"], arrays)
        return Cached(packed.passages(count), known["remarks"])
    except (OSError, SafetensorError, KeyError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class Packed:
    """Passages as arrays, which are quickly written to disk and handed to another process.

    Attributes:
        count: how many passages.
        readers: whose tokens they hold.
        after_latents: the readers that are asked something else after latents.
        arrays: rows of numbers one after the other, and their sizes.
    """

    count: int
    readers: list[str]
    after_latents: list[str]
    arrays: dict[str, np.ndarray[Any, Any]]

    @classmethod
    def of(cls, passages: Sequence[Passage]) -> Packed:
        """At least one passage; all of the same readers."""
        readers = list(passages[0].text)
        after = [name for name in readers if name in passages[0].after_latents]
        return cls(len(passages), readers, after, _packed(passages, readers, after))

    @classmethod
    def joined(cls, parts: Sequence[Packed]) -> Packed:
        """The passages of several parts, one after the other."""
        names = parts[0].arrays
        arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in names}
        return replace(parts[0], count=sum(part.count for part in parts), arrays=arrays)

    def passages(self, count: int) -> list[Passage]:
        """The first `count` of them."""
        return _unpacked(self, min(count, self.count))


def save(key_: str, packed: Packed, remarks: Sequence[str], *, complete: bool) -> None:
    """Keep passages. complete: they are all that the data holds."""
    known = {
        "count": packed.count,
        "complete": complete,
        "remarks": list(remarks),
        "readers": packed.readers,
        "after_latents": packed.after_latents,
    }
    path = _path(key_)
    unfinished = beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent / "*")
        save_file(packed.arrays, unfinished, metadata={"passages": json.dumps(known)})
        unfinished.replace(path)
        for old in sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink()
    except (OSError, SafetensorError):  # a full or read-only disk: the passages are there all the same
        unfinished.unlink(missing_ok=True)


def _path(key_: str) -> Path:
    return folder() / f"{key_[:32]}.safetensors"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # whoever reads it says what is wrong


def _packed(
    passages: Sequence[Passage], readers: Sequence[str], after_latents: Sequence[str]
) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {"asked": np.array([p.asked for p in passages], np.int32)}

    def put(name: str, rows: Sequence[Sequence[int]]) -> None:
        arrays[f"{name}.sizes"] = np.array([len(row) for row in rows], np.int32)
        arrays[name] = np.fromiter(chain.from_iterable(rows), np.int32)

    def put_texts(name: str, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        arrays[f"{name}.sizes"] = np.array([len(text) for text in encoded], np.int32)
        arrays[name] = np.frombuffer(b"".join(encoded), np.uint8)

    put_texts("groups", [p.group for p in passages])
    put_texts("contexts", [p.context for p in passages])
    for number, reader in enumerate(readers):
        put(f"{number}.text", [p.text[reader] for p in passages])
        put(f"{number}.question", [question for p in passages for question, _ in p.pairs[reader]])
        put(f"{number}.answer", [answer for p in passages for _, answer in p.pairs[reader]])
        if reader in after_latents:
            put(f"{number}.after", [ids for p in passages for ids in p.after_latents[reader]])
    return arrays


def _unpacked(packed: Packed, count: int) -> list[Passage]:
    arrays = packed.arrays

    def rows(name: str, many: int) -> Iterator[list[int]]:
        sizes = arrays[f"{name}.sizes"][:many].tolist()
        values = arrays[name][: sum(sizes)].tolist()
        return (values[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True))

    def texts(name: str) -> list[str]:
        sizes, encoded = arrays[f"{name}.sizes"][:count].tolist(), arrays[name].tobytes()
        return [encoded[end - size : end].decode() for size, end in zip(sizes, accumulate(sizes), strict=True)]

    asked = arrays["asked"][:count].tolist()
    spans = [slice(end - size, end) for size, end in zip(asked, accumulate(asked), strict=True)]
    text: list[dict[str, list[int]]] = [{} for _ in asked]
    pairs: list[dict[str, list[tuple[list[int], list[int]]]]] = [{} for _ in asked]
    after: list[dict[str, list[list[int]]]] = [{} for _ in asked]
    for number, reader in enumerate(packed.readers):
        total = sum(asked)
        both = list(zip(rows(f"{number}.question", total), rows(f"{number}.answer", total), strict=True))
        for at, (ids, span) in enumerate(zip(rows(f"{number}.text", count), spans, strict=True)):
            text[at][reader], pairs[at][reader] = ids, both[span]
        if reader in packed.after_latents:
            others = list(rows(f"{number}.after", total))
            for at, span in enumerate(spans):
                after[at][reader] = others[span]
    named = zip(texts("groups"), texts("contexts"), text, pairs, after, strict=True)
    return [Passage(*parts) for parts in named]

"""Which part of which file is mapped at an address in memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MAPS = Path("/proc/self/smaps")
"""Linux lists the mappings of a process here. Elsewhere no memory is known to be a file's."""
_WRITTEN = ("Anonymous:", "Swap:")
"""Lines of a mapping that count pages this process has written to, which no longer hold what the file holds."""


@dataclass(frozen=True)
class _Mapping:
    """Addresses `start` to `stop` hold `file` from `offset` on; `inode` is the file's when it was mapped."""

    start: int
    stop: int
    offset: int
    inode: int
    file: str


class Files:
    """The files that this process has mapped.

    Reading a file anew is faster than copying from its mapping: the first touch of a page that is not in memory
    waits for that page alone, while one read asks for everything at once. The list of mappings is read when it is
    first asked: Linux looks at every page of the process for it.
    """

    def __init__(self) -> None:
        self._open: dict[str, int | None] = {}

    @cached_property
    def _mappings(self) -> list[_Mapping]:
        return sorted(_mapped(), key=lambda mapping: mapping.start)

    @cached_property
    def _starts(self) -> list[int]:
        return [mapping.start for mapping in self._mappings]

    def at(self, address: int, size: int) -> tuple[int, int] | None:
        """Descriptor and offset of the file whose bytes are at an address, None where they are not one file's."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        mapping = self._mappings[index]
        if address + size > mapping.stop or (descriptor := self._descriptor(mapping)) is None:
            return None
        return descriptor, mapping.offset + address - mapping.start

    def _descriptor(self, mapping: _Mapping) -> int | None:
        if mapping.file not in self._open:
            try:
                descriptor = os.open(mapping.file, os.O_RDONLY)
            except OSError:  # the file was removed after it was mapped; its pages are still there
                return self._open.setdefault(mapping.file, None)
            if os.fstat(descriptor).st_ino != mapping.inode:  # another file has this name now
                os.close(descriptor)
                return self._open.setdefault(mapping.file, None)
            self._open[mapping.file] = descriptor
        return self._open[mapping.file]

    def close(self) -> None:
        """Close every file that `at` has opened."""
        for descriptor in self._open.values():
            if descriptor is not None:
                os.close(descriptor)


@contextmanager
def files() -> Iterator[Files]:
    """The files that are mapped, open while the block lasts."""
    mapped = Files()
    try:
        yield mapped
    finally:
        mapped.close()


def _mapped() -> Iterator[_Mapping]:
    """Mappings of files to which this process has written nothing since."""
    mapping: _Mapping | None = None
    clean: set[str] = set()
    for line in MAPS.read_text().splitlines() if MAPS.exists() else []:
        first, *rest = line.split(maxsplit=5)
        if first.endswith(":"):
            if first in _WRITTEN and rest[0] == "0":
                clean.add(first)
            if mapping is not None and clean.issuperset(_WRITTEN):
                yield mapping
                mapping = None
        else:
            clean.clear()
            mapping = _mapping(first, rest)


def _mapping(span: str, rest: list[str]) -> _Mapping | None:
    _, offset, _, inode, *path = rest
    if not int(inode) or not path:
        return None
    start, stop = (int(address, 16) for address in span.split("-"))
    return _Mapping(start, stop, int(offset, 16), int(inode), path[0])

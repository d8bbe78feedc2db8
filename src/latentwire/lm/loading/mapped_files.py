"""Memory that is a file's: which part of which file stands at an address."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAPS = Path("/proc/self/smaps")
"""Linux alone tells; elsewhere no memory is known to be a file's."""
_WRITTEN = ("Anonymous:", "Swap:")
"""What it calls pages of a mapping that this process has written to: no longer the file's."""


@dataclass(frozen=True)
class _Stretch:
    """Addresses `start` to `stop`, where `file` stands from `offset` on. inode: of the file when it was mapped."""

    start: int
    stop: int
    offset: int
    inode: int
    file: str


class Files:
    """The files that this process has mapped, to be read anew where copying from their pages would be slower.

    A page that is not in memory is waited for alone when it is touched; a read asks for all that it wants.
    """

    def __init__(self, stretches: list[_Stretch]) -> None:
        self._stretches = sorted(stretches, key=lambda each: each.start)
        self._starts = [each.start for each in self._stretches]
        self._open: dict[str, int | None] = {}

    def at(self, address: int, size: int) -> tuple[int, int] | None:
        """Descriptor and offset of the file whose bytes stand there; None where it is not one file's."""
        found = bisect_right(self._starts, address) - 1
        if found < 0:
            return None
        stretch = self._stretches[found]
        if address + size > stretch.stop or (descriptor := self._descriptor(stretch)) is None:
            return None
        return descriptor, stretch.offset + address - stretch.start

    def _descriptor(self, stretch: _Stretch) -> int | None:
        if stretch.file not in self._open:
            try:
                opened = os.open(stretch.file, os.O_RDONLY)
            except OSError:  # it has been removed meanwhile; its pages are still there
                return self._open.setdefault(stretch.file, None)
            if os.fstat(opened).st_ino != stretch.inode:  # another file has its name now
                os.close(opened)
                return self._open.setdefault(stretch.file, None)
            self._open[stretch.file] = opened
        return self._open[stretch.file]

    def close(self) -> None:
        for descriptor in self._open.values():
            if descriptor is not None:
                os.close(descriptor)


@contextmanager
def files() -> Iterator[Files]:
    """The files that are mapped now."""
    found = Files(list(_mapped()))
    try:
        yield found
    finally:
        found.close()


def _mapped() -> Iterator[_Stretch]:
    """Stretches of files, in none of which anything was written to memory since they were mapped."""
    found: _Stretch | None = None
    clean: set[str] = set()
    for line in MAPS.read_text().splitlines() if MAPS.exists() else []:
        first, *rest = line.split(maxsplit=5)
        if first.endswith(":"):
            if first in _WRITTEN and rest[0] == "0":
                clean.add(first)
            if found is not None and clean.issuperset(_WRITTEN):
                yield found
                found = None
        else:
            clean.clear()
            found = _stretch(first, rest)


def _stretch(span: str, rest: list[str]) -> _Stretch | None:
    _, offset, _, inode, *path = rest
    if not int(inode) or not path:
        return None
    start, stop = (int(each, 16) for each in span.split("-"))
    return _Stretch(start, stop, int(offset, 16), int(inode), path[0])

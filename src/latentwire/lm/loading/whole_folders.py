"""Folders that appear only once they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentwire.files import beside, left_behind, tidy


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when the block ends without an error.

    After an error nothing of it is left, and what was in `folder` is still there. After a kill the next call for
    the same folder removes what was left, and restores the old folder if the kill came between the two renames.
    Files get the mode of new files: safetensors alone would make its own readable by their owner only.

    Args:
        folder: the folder to create or to replace.

    Yields:
        An empty folder beside it.

    Example:
        >>> with appearing(Path("wire")) as partial:
        ...     (partial / "wire.json").write_text("{}")
    """
    folder = folder.resolve()
    _put_back(folder)
    tidy(folder)
    partial, old = beside(folder, "partial"), beside(folder, "old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _usual_modes(partial)
        # A kill between the two renames loses the name, never the weights.
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Give back what `folder` held before a kill between the two renames; what the new folder replaced goes."""
    for old in left_behind(folder, "old"):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def _usual_modes(folder: Path) -> None:
    """Give every file below a folder the mode of a new file, `0666` without the bits of the umask."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~umask)

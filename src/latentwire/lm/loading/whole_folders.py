"""Folders that appear only once they are complete."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    _tidy(folder)
    partial, old = (folder.with_name(f".{folder.name}.{what}-{_owner()}") for what in ("partial", "old"))
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


def _owner() -> str:
    """This process, by name: machines that share a disk have the same process ids."""
    return f"{os.getpid()}@{socket.gethostname()}"


def _tidy(folder: Path) -> None:
    """Remove what processes that were killed left beside `folder`; what it held before them comes back."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(partial|old)-(\d+)(?:@(.+))?")
    if not folder.parent.is_dir():
        return
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or match[3] not in (None, socket.gethostname()) or _runs(int(match[2])):
            continue
        if match[1] == "old" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _usual_modes(folder: Path) -> None:
    """Give every file below a folder the mode of a new file, `0666` without the bits of the umask."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~umask)

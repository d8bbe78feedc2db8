"""Files that are whole or absent, what killed processes leave of them, and checks before work starts."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from latentwire.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`; a kill at any instant leaves the old file or the new one.

    What an earlier process that was killed left beside it is removed.
    """
    tidy(path)
    unfinished = beside(path, "partial")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where files lie that only save time: `LATENTWIRE_CACHE`, or `~/.cache/latentwire`."""
    return Path(os.environ.get("LATENTWIRE_CACHE") or Path.home() / ".cache" / "latentwire")


def beside(path: Path, what: str) -> Path:
    """A hidden name beside `path` that says which process it belongs to: `.NAME.WHAT-PID@HOST`.

    Machines that share a disk have the same process ids, so the machine's name is part of it.

    Args:
        path: the file or folder that is being made.
        what: what the name stands for, such as `partial`.
    """
    return path.with_name(f".{path.name}.{what}-{os.getpid()}@{socket.gethostname()}")


def left_behind(path: Path, what: str = "partial") -> Iterator[Path]:
    """The names of `beside` that processes of this machine left when they were killed.

    Args:
        path: the file or folder that they made; a name of `*` stands for any.
        what: what the name stands for, as in `beside`.
    """
    name = ".+" if path.name == "*" else re.escape(path.name)
    pattern = re.compile(rf"\.{name}\.{what}-(\d+)(?:@(.+))?")
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for each in names:
        match = pattern.fullmatch(each)
        if match and match[2] in (None, socket.gethostname()) and not _runs(int(match[1])):
            yield path.with_name(each)


def tidy(path: Path) -> None:
    """Remove what processes that were killed left of `path`, a file or folder; `*` as its name stands for any."""
    for place in left_behind(path):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def full_disk(error: BaseException | None) -> str | None:
    """The sentence for an error that a full disk caused, None for any other.

    Example:
        >>> full_disk(ValueError("no")) is None
        True
    """
    while error is not None:
        # Libraries written in Rust raise errors of their own kinds.
        if (isinstance(error, OSError) and error.errno in _NO_ROOM) or "No space left on device" in str(error):
            file = getattr(error, "filename", None)
            where = f" for {os.fsdecode(file)}" if isinstance(file, str | bytes) else ""
            return f"there is no room left on the disk{where}; make room, and run the same command again to go on"
        error = error.__cause__ or error.__context__
    return None


def check_writable(file: Path, field: str) -> None:
    """Refuse a file that cannot be written before work starts, rather than at its end.

    Args:
        field: the option that names the file, for the message.

    Raises:
        UserError: the folder is missing or closed, or the path is a folder.
    """
    folder = file.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{field}: found no folder {file.parent}, expected one to write {file.name} into.")
    if file.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{field}: {file} cannot be written, expected a file in a folder that can.")


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

"""Files that are whole or absent, and checks before work starts."""

from __future__ import annotations

import os
from pathlib import Path

from latentwire.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`; a kill at any instant leaves the old file or the new one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


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

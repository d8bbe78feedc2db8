"""Reading a user's data file; whatever is wrong with it is said in one sentence."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from pathlib import Path

from pydantic import ValidationError

from latentwire.errors import UserError, nearest


def read_bytes(path: Path) -> bytes:
    """The content of `path`, unpacked if it ends in `.gz` or `.xz`, without a UTF-8 byte order mark.

    Raises:
        UserError: there is no such file, it is a folder, it may not be read, or it is not what its ending says.
    """
    check_readable(path)
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".xz":
            content = lzma.decompress(content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: expected a {path.suffix} file, found damaged content: {error}.") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def check_readable(path: Path) -> None:
    """Raise a `UserError` if there is no such file, it is a folder, or it may not be read."""
    if path.is_dir():
        raise UserError(f"{path}: expected a file, found a folder.")
    try:
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: expected a readable file, found: {reason}.") from error


def decode(content: bytes, where: str) -> str:
    """`content` as UTF-8.

    Raises:
        UserError: it is something else; the message begins with `where`.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise UserError(f"{where}: expected UTF-8 text, found {found}.") from error


def digest(*parts: str) -> str:
    """16 hexadecimal digits that identify the content of `parts`; they never change between versions.

    Example:
        >>> digest("Ada lives in Rome.")
    """
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:16]


_IN_WORDS = {
    r"\S": "expected text that is not blank",
    "_": "expected text with the gap '_'",
    r"####\s*[-+$]*[0-9.]": "expected a solution that ends in '#### NUMBER'",
}
"""What the patterns of fields ask for."""


def first_mistake(error: ValidationError) -> str:
    """The first mistake that pydantic found: the field, what was expected, what was found."""
    mistake = error.errors(include_url=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"])
    field = field.removeprefix(".") or "the whole"
    value = mistake["input"]
    if mistake["type"] == "missing":
        keys = ", ".join(map(str, value))
        misspelt = nearest(str(mistake["loc"][-1]), map(str, value))
        return f"field {field!r} is missing, found the fields: {keys or 'none'}{misspelt}."
    if mistake["type"] == "string_pattern_mismatch":
        expected = _IN_WORDS.get(mistake["ctx"]["pattern"], "expected other text")
    else:
        expected = mistake["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return f"field {field!r}: {expected}, found {shown}."

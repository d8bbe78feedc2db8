"""Trained wires on the hub: `OWNER/NAME` or `OWNER/NAME@REVISION`, downloaded once and read from the cache."""

from __future__ import annotations

import re
from pathlib import Path

from latentwire.errors import UserError

FILES = ("wire.json", "wire.safetensors", "readers.json")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def names(text: str) -> bool:
    """Whether a text is spelled like a wire on the hub and is no local path.

    Example:
        >>> names("me/my-wire@v1"), names("runs/wire")  # the second is a hub id too, unless there is such a folder
        (True, True)
    """
    return _ID.fullmatch(text) is not None and not Path(text).exists()


def named(text: str) -> str:
    """The wire on the hub that an arm's spelling begins with, its revision included; "" where it begins with none.

    What follows an `@` is a revision if no slash or colon is in it; a model that reads has one of these.

    Example:
        >>> named("me/my-wire@v1:4bit@me/reader"), named("me/my-wire@me/reader")
        ('me/my-wire@v1', 'me/my-wire')
    """
    begun = re.match(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?=[:@,]|$)", text)
    if begun is None or not names(begun[0]):
        return ""
    revision = re.match(r"@[\w.-]+(?=[:@,]|$)", text[begun.end() :])
    if revision is None or _is_model(text[begun.end() + 1 :]):
        return begun[0]
    return begun[0] + revision[0]


def _is_model(text: str) -> bool:
    """Whether what follows an `@` is a model: `embedded:NAME`, or a local folder or file."""
    return text.startswith("embedded:") or Path(text.partition(":")[0]).exists()


def fetch(text: str) -> Path:
    """The folder of a wire on the hub, after its download.

    Raises:
        UserError: the hub has no such wire, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = text.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # what the hub raises is one of the two
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"wire: {text} is neither a folder nor available from the hub: {reason}") from error
    if not (folder / FILES[0]).is_file():
        raise UserError(f"wire: found no {FILES[0]} in {text}, expected a trained wire on the hub.")
    return folder

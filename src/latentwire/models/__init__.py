"""The embedded models: small decoders that this project grew, and the recipes they were grown by."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from latentwire.errors import UserError

NAMES = ("heron", "wren")


def folder(name: str) -> Path:
    """The folder of an embedded model, an ordinary Hugging Face model folder with its `recipe.json`.

    Raises `UserError` for a name that is not one of `NAMES`.
    """
    if name not in NAMES:
        nearest = get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"embedded model: found {name!r}, expected one of {', '.join(NAMES)}; the nearest is {nearest!r}"
        )
    return Path(__file__).parent / name

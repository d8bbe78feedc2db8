"""The embedded models: small decoders that this project grew, and the recipes they were grown by.

Trained wires that ship with the package lie beside them.
"""

from __future__ import annotations

from pathlib import Path

from latentwire.errors import UserError, one_of

NAMES = ("heron", "wren")
WIRES = tuple(sorted(file.parent.name for file in Path(__file__).parent.glob("*/wire.json")))
"""Embedded wires: whatever folder here holds one."""


def folder(name: str) -> Path:
    """The folder of an embedded model, an ordinary Hugging Face model folder with its `recipe.json`.

    Raises `UserError` for a name that is not one of `NAMES`.
    """
    if name not in NAMES:
        raise UserError(f"embedded model: found {name!r}, expected {one_of(name, NAMES)}.")
    return Path(__file__).parent / name


def wire_folder(name: str) -> Path:
    """The folder of an embedded wire. Raises `UserError` for a name that is not one of `WIRES`."""
    if name not in WIRES:
        expected = one_of(name, WIRES) if WIRES else "a folder: this package ships no wire"
        raise UserError(f"wire: found 'embedded:{name}', expected {expected}.")
    return Path(__file__).parent / name

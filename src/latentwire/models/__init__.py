"""The embedded models: small decoders that this project grew, with the recipes they were grown by.

Wires that were trained between them and ship with the package are in folders of their own beside them. All of it
is under the package's licence, Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path

from latentwire.errors import UserError, one_of

NAMES = ("heron", "wren")
WIRES = tuple(sorted(file.parent.name for file in Path(__file__).parent.glob("*/wire.json")))
"""Embedded wires: every folder here that holds one."""


def folder(name: str) -> Path:
    """The folder of an embedded model: an ordinary Hugging Face model folder, with its `recipe.json`.

    Args:
        name: one of `NAMES`.

    Raises:
        UserError: there is no such model; the sentence names the nearest.

    Example:
        >>> folder("heron").name
        'heron'
    """
    if name not in NAMES:
        raise UserError(f"embedded model: found {name!r}, expected {one_of(name, NAMES)}.")
    return Path(__file__).parent / name


def wire_folder(name: str) -> Path:
    """The folder of an embedded wire.

    Args:
        name: one of `WIRES`.

    Raises:
        UserError: there is no such wire; the sentence names the nearest.

    Example:
        >>> wire_folder("heron-4x").name
        'heron-4x'
    """
    if name not in WIRES:
        expected = one_of(name, WIRES) if WIRES else "a folder: this package ships no wire"
        raise UserError(f"wire: found 'embedded:{name}', expected {expected}.")
    return Path(__file__).parent / name

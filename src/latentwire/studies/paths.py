"""Paths in a study as written: keys of nested mappings, numbers for positions in lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentwire.errors import UserError
from latentwire.studies.mistakes import shown


def put(raw: dict[str, Any], path: Sequence[str], value: Any, label: str) -> None:
    """Put a value at a path, creating missing mappings.

    Args:
        raw: The study.
        path: Keys and positions.
        value: What to put there.
        label: How an error message begins, such as `--set: stages.fit.steps`.

    Raises:
        UserError: Something on the way is neither a mapping nor a list, or a list is too short.
    """
    at: Any = raw
    for depth, part in enumerate(path):
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise UserError(f"{label}: found {part!r}, expected a position from 0 to {len(at) - 1}.")
            index: Any = int(part)
        elif isinstance(at, dict):
            index = part
        else:
            raise UserError(f"{label}: found {shown(at)} at {'.'.join(path[:depth])}, expected a mapping.")
        if depth == len(path) - 1:
            at[index] = value
        elif isinstance(at, dict):
            at = at.setdefault(index, {})
        else:
            at = at[index]

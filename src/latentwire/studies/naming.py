"""Models and files under names of the study's own, so that each is written once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from latentwire.errors import UserError, one_of

MODELS, FILES = "models", "files"
"""A study's keys for models and files by name. `$NAME` stands for one in any text or key of the study."""
_NAME = re.compile(r"\$(\w+)")


def in_full(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A study without `models` and `files`, and with what they name in the place of every `$NAME`.

    Raises:
        UserError: One of them is not a mapping of names to texts, both have the same name, or a name is unknown.
    """
    rest = {key: value for key, value in raw.items() if key not in (MODELS, FILES)}
    names: dict[str, str] = {}
    for key in (MODELS, FILES):
        named = raw.get(key, {})
        if not isinstance(named, dict) or not all(isinstance(text, str) for text in [*named, *named.values()]):
            raise UserError(f"{key}: found {str(named)[:60]!r}, expected a mapping of names to {key}.")
        for name in named.keys() & names.keys():
            raise UserError(f"{FILES}.{name}: found the name of a model, expected another name.")
        names |= named
    return {key: _filled(value, names, key) for key, value in rest.items()}


def _filled(value: Any, names: Mapping[str, str], at: str) -> Any:
    if isinstance(value, dict):
        # Two names may stand for the same model; then the later entry counts.
        return {_filled(key, names, at): _filled(each, names, f"{at}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, names, f"{at}.{n}") for n, each in enumerate(value)]
    if not isinstance(value, str):
        return value

    def meaning(match: re.Match[str]) -> str:
        if not names:
            raise UserError(
                f"{at}: found {match[0]!r}, expected a study with {MODELS}, where $NAME has its model."
            )
        if match[1] not in names:
            raise UserError(f"{at}: found {match[0]!r}, expected {one_of(match[1], names)} after the $.")
        return names[match[1]]

    return _NAME.sub(meaning, value)

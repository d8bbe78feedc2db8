"""Models under names of the study's own, so that who is who in a study is said once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from latentwire.errors import UserError, one_of

MODELS = "models"
"""The study's key for models by name; `$NAME` stands for one wherever the study is text, keys included."""
_NAME = re.compile(r"\$(\w+)")


def in_full(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A study without `models`, what they name put in its place.

    Raises:
        UserError: `models` is no mapping of names to models, or a name is not in it.
    """
    rest = {key: value for key, value in raw.items() if key != MODELS}
    found = raw.get(MODELS, {})
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in [*found, *found.values()]):
        raise UserError(f"{MODELS}: found {str(found)[:60]!r}, expected a mapping of names to models.")
    return {key: _filled(value, found, key) for key, value in rest.items()}


def _filled(value: Any, models: Mapping[str, str], at: str) -> Any:
    if isinstance(value, dict):
        # In a mapping's order: two names may stand for the same model, whose later entry counts.
        return {_filled(key, models, at): _filled(each, models, f"{at}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, models, f"{at}.{n}") for n, each in enumerate(value)]
    if not isinstance(value, str):
        return value

    def model(match: re.Match[str]) -> str:
        if not models:
            raise UserError(
                f"{at}: found {match[0]!r}, expected a study with {MODELS}, where $NAME has its model."
            )
        if match[1] not in models:
            raise UserError(f"{at}: found {match[0]!r}, expected {one_of(match[1], models)} behind the $.")
        return models[match[1]]

    return _NAME.sub(model, value)

"""Ways to deliver a context. A new kind is one class and one line in `KINDS`."""

from __future__ import annotations

from difflib import get_close_matches

from pydantic import ValidationError

from latentwire.errors import UserError
from latentwire.wires.base import Message, Wire
from latentwire.wires.controls import Budget, Nothing
from latentwire.wires.text import Leaky, Repeat, Text

KINDS: dict[str, type[Wire]] = {
    "text": Text,
    "none": Nothing,
    "budget": Budget,
    "repeat": Repeat,
    "leaky": Leaky,
}

__all__ = ["KINDS", "Message", "Wire", "parse"]


def parse(text: str) -> Wire:
    """A wire from `KIND[,OPTION=VALUE]...`, such as `text,mask=prefix,layers=0-5`.

    Raises:
        UserError: an unknown kind or option (the nearest valid is named) or a wrong value.
    """
    kind, *pairs = [part.strip() for part in text.split(",")]
    if kind not in KINDS:
        raise UserError(f"wire: found {kind!r}, expected {_one_of(kind, list(KINDS))}.")
    known = [name for name in KINDS[kind].model_fields if name != "kind"]
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known or name in options:
            raise UserError(
                f"wire: found {pair!r} in {text!r}, expected OPTION=VALUE with {_one_of(name, known)}."
            )
        options[name] = value
    try:
        return KINDS[kind].model_validate({"kind": kind, **options})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        told = _lower(first["msg"].removeprefix("Value error, "))
        if not field:
            raise UserError(f"wire: {text}: {told}.") from error
        raise UserError(f"wire: {kind} {field}: found {options.get(field, 'nothing')!r}; {told}.") from error


def _one_of(found: str, valid: list[str]) -> str:
    near = get_close_matches(found, valid, n=1)
    return f"one of {', '.join(valid)}" + (f" (nearest: {near[0]})" if near else "")


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]

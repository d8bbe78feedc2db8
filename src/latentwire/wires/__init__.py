"""Ways to deliver a context. A new kind is one class and one line in `KINDS`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from latentwire import models
from latentwire.errors import UserError, one_of
from latentwire.wires.controls import Budget, Nothing, Prune
from latentwire.wires.latent.latent_wire import CONTROLS, Latent, LatentWireBase, locate
from latentwire.wires.relay import Relay
from latentwire.wires.text_wire import Leaky, PlainText, Repeat
from latentwire.wires.untrained import Evict, Nth
from latentwire.wires.wire import Message, Wire

KINDS: dict[str, type[Wire]] = {
    "text": PlainText,
    "none": Nothing,
    "budget": Budget,
    "prune": Prune,
    "repeat": Repeat,
    "leaky": Leaky,
    "nth": Nth,
    "evict": Evict,
    "relay": Relay,
}

__all__ = ["CONTROLS", "KINDS", "Message", "Wire", "parse", "split"]


def parse(text: str) -> Wire:
    """A wire from `KIND[,OPTION=VALUE]...`, such as `text,mask=prefix,layers=0-5`, or a trained one.

    A trained wire is `embedded:NAME`, its folder, or the run that trained it. What is done to latents on their way
    stands behind them: `nth,ratio=4:zero`, `embedded:heron-4x:4bit`.

    Raises:
        UserError: an unknown kind, option, wire or control (the nearest valid is named) or a wrong value.
    """
    spec, control = split(text.strip())
    if not control:
        return _plain(spec)
    wire = _plain(spec)
    if control not in CONTROLS or not isinstance(wire, LatentWireBase):
        valid = (
            one_of(control, CONTROLS) if isinstance(wire, LatentWireBase) else "no control: it sends no latents"
        )
        raise UserError(f"wire: found {control!r} behind {spec}, expected {valid}.")
    return wire.model_copy(update={"control": control})


def split(text: str) -> tuple[str, str]:
    """A wire and what is written behind its last colon; "" where that colon belongs to a model's name or path."""
    spec, _, behind = text.rpartition(":")
    named = spec == "embedded" or spec.endswith("=embedded") or "," in behind
    return (text, "") if not (spec and behind) or named or Path(text).is_dir() else (spec, behind)


def _plain(text: str) -> Wire:
    kind, *pairs = [part.strip() for part in text.split(",")]
    if kind not in KINDS:
        return _trained(text)
    known = [name for name in KINDS[kind].model_fields if name not in ("kind", "control")]
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known or name in options:
            raise UserError(f"wire: found {pair!r} in {text!r}, expected OPTION=VALUE with {one_of(name, known)}.")
        options[name] = value
    try:
        return KINDS[kind].model_validate({"kind": kind, **options})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        told = _lower(first["msg"].removeprefix("Value error, "))
        if first["type"] == "missing":
            raise UserError(f"wire: {kind} {field}: found nothing, expected {field}=VALUE.") from error
        if not field:
            raise UserError(f"wire: {text}: {told}.") from error
        raise UserError(f"wire: {kind} {field}: found {options.get(field, 'nothing')!r}; {told}.") from error


def _trained(text: str) -> Wire:
    if text.startswith("embedded:") or (text and Path(text).is_dir()):
        locate(text)
        return Latent(path=text)
    valid = [*KINDS, *(f"embedded:{name}" for name in models.WIRES)]
    raise UserError(f"wire: found {text!r}, expected {one_of(text, valid)} or a trained wire's folder.")


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]

"""Wires: the ways to deliver a context to a reader.

`parse` makes a wire of its command-line spelling. `KINDS` lists the wires of this package; a wire of your own is
named by its path, `package.module:Class`, and is listed nowhere.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from latentwire import kinds, models
from latentwire.errors import UserError, one_of
from latentwire.wires.controls import Budget, Nothing, Prune
from latentwire.wires.latent import hub_wires
from latentwire.wires.latent.gain import Gain
from latentwire.wires.latent.latent_wire import CONTROLS, Latent, LatentWireBase, locate
from latentwire.wires.relay import Relay
from latentwire.wires.scored import ScoredWire
from latentwire.wires.text_wire import Leaky, PlainText, Repeat, TextWire
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

__all__ = [
    "CONTROLS",
    "KINDS",
    "LatentWireBase",
    "Message",
    "ScoredWire",
    "TextWire",
    "Wire",
    "described",
    "parse",
    "split",
]


def parse(text: str) -> Wire:
    """A wire from its command-line spelling.

    Args:
        text: `KIND[,OPTION=VALUE]...`, where KIND is one of `KINDS` or the path of a class of your own,
            `package.module:Class`; or a trained wire: `embedded:NAME`, its folder, the run that trained it, or a
            hub id, `OWNER/NAME@REVISION`.
            A control of latents is appended with a colon: `nth,ratio=4:zero`, `embedded:heron-4x:4bit`.

    Raises:
        UserError: an unknown kind, option, wire or control (the nearest valid one is named), or a wrong value.

    Example:
        >>> parse("text,mask=prefix,layers=0-5").label
        'text,mask=prefix,layers=0-5'
    """
    spec, control = split(text.strip())
    if not control:
        return _plain(spec)
    wire = _plain(spec)
    sends_latents = isinstance(wire, LatentWireBase)
    if control not in CONTROLS or not sends_latents:
        valid = one_of(control, CONTROLS) if sends_latents else "no control: it sends no latents"
        raise UserError(f"wire: found {control!r} after {spec}, expected {valid}.")
    return wire.model_copy(update={"control": control})


def split(text: str) -> tuple[str, str]:
    """A wire's spelling and the control after its last colon; "" where that colon belongs to a name or a path."""
    spec, _, control = text.rpartition(":")
    named = spec == "embedded" or spec.endswith("=embedded") or "," in control or _is_class(text)
    return (text, "") if not (spec and control) or named or Path(text).is_dir() else (spec, control)


def described() -> str:
    """Every kind of wire with its options and what it is, one paragraph each, for help texts."""
    lines = []
    for name, wire in KINDS.items():
        options = "".join(
            f",{option}={values.removesuffix('!')}" if values.endswith("!") else f"[,{option}={values}]"
            for option, values in wire.options().items()
        )
        lines += [f"{name}{options}", f"    {wire.summary()}"]
    return "\n".join([*lines, f"{kinds.OWN}[,OPTION=VALUE]...", "    A wire of your own.", ""])


def _is_class(text: str) -> bool:
    """Whether a text is the path of a class, and not a kind or a folder with a control after it."""
    module, _, name = text.partition(":")
    known = module in KINDS or module == "embedded" or name in CONTROLS
    return kinds.is_path(text) and not (known or Path(text).is_dir() or Path(module).is_dir())


def _plain(text: str) -> Wire:
    """A wire without a control."""
    kind, *pairs = [part.strip() for part in text.split(",")]
    if _is_class(kind):
        made = kinds.load(kind, Wire, "wire")
    elif kind in KINDS:
        made = KINDS[kind]
    else:
        return _trained(text)
    known = list(made.options())
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known or name in options:
            raise UserError(f"wire: found {pair!r} in {text!r}, expected OPTION=VALUE with {one_of(name, known)}.")
        options[name] = value
    try:
        wire: Wire = made.model_validate({"kind": kind, **options})
        return wire
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = _lower(first["msg"].removeprefix("Value error, "))
        if first["type"] == "missing":
            raise UserError(f"wire: {kind} {field}: found nothing, expected {field}=VALUE.") from error
        if not field:
            raise UserError(f"wire: {text}: {problem}.") from error
        raise UserError(f"wire: {kind} {field}: found {options.get(field, 'nothing')!r}; {problem}.") from error


def _trained(text: str) -> Wire:
    path, comma, option = text.rpartition(",")
    if comma and option.startswith("gain=") and not Path(text).is_dir():
        wire = _trained(path)
        try:
            return wire.model_copy(update={"gain": Gain.parse(option.removeprefix("gain="))})
        except ValueError as error:
            raise UserError(f"wire: {path} gain: found {option.removeprefix('gain=')!r}; {error}.") from error
    if text.startswith("embedded:") or (text and Path(text).is_dir()) or hub_wires.names(text):
        locate(text)
        return Latent(path=text)
    valid = [*KINDS, *(f"embedded:{name}" for name in models.WIRES)]
    raise UserError(
        f"wire: found {text!r}, expected {one_of(text, valid)}, a trained wire's folder or hub id, or {kinds.OWN}."
    )


def _lower(message: str) -> str:
    return message[0].lower() + message[1:]

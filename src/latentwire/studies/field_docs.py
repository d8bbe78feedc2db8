"""What each key of a study means, read from the docstrings of the settings' classes."""

from __future__ import annotations

import inspect
import re

from pydantic import BaseModel

from latentwire.kinds import Kind

_SECTION = re.compile(r"^Attributes:\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """By field, its meaning: the entry under `Attributes:` of its class, or of the nearest parent that has one.

    Entries may share a line (`layers: how many. heads: of attention.`), and one entry may serve several fields.

    Example:
        >>> descriptions(Stopping)["collapse_steps"]
        'The steps in which `collapse_ratio` applies.'
    """
    meanings: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        section = _SECTION.search(inspect.cleandoc(owner.__dict__.get("__doc__") or "") + "\n")
        if section is None:
            continue
        text = section[1]
        inline = re.compile(rf"(?<=\. )({'|'.join(model.model_fields)}): ") if model.model_fields else None
        entries = sorted([*_ENTRY.finditer(text), *(inline.finditer(text) if inline else ())], key=re.Match.start)
        for entry, after in zip(entries, [*entries[1:], None], strict=True):
            meaning = " ".join(text[entry.end() : after.start() if after else None].split())
            meanings |= dict.fromkeys(entry[1].split(", "), meaning[:1].upper() + meaning[1:])
    written = {name: field.description for name, field in model.model_fields.items() if field.description}
    if "kind" in model.model_fields:
        written.setdefault("kind", f"Picks this kind: {summary(model)[:1].lower()}{summary(model)[1:]}")
    return {name: text for name, text in {**meanings, **written}.items() if name in model.model_fields}


def summary(model: type[BaseModel]) -> str:
    """What a class of settings is: its docstring up to the list of attributes."""
    if "kind" in model.model_fields and issubclass(model, Kind):
        return model.summary()
    text = inspect.cleandoc(model.__dict__.get("__doc__") or "")
    return " ".join(re.split(r"^\w+:\n", text, maxsplit=1, flags=re.MULTILINE)[0].split())

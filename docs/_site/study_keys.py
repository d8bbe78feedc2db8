"""The reference of a study's keys, made from the classes of its settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from latentwire.studies.field_docs import descriptions, summary
from latentwire.studies.spec import Study
from latentwire.studies.study_schema import BESIDE, SWEEP_MEANING

PLACES = {
    "objectives": "latentwire.training.objectives",
    "wires": "latentwire.wires",
    "stages": ("latentwire.studies.stages", "latentwire.training", "latentwire.lm.loading.lora"),
    "study": "latentwire",
}
"""By page, the modules whose settings it holds; the first page that fits."""
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", Any: "anything"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page(name: str) -> str:
    """The sections of one page as Markdown, one for each class of settings."""
    return "\n\n".join(_section(model) for model in models() if _page_of(model) == name)


def models() -> list[type[BaseModel]]:
    """Every class of settings of a study, in the order in which a study leads to it."""
    known: dict[type[BaseModel], None] = {}
    waiting: list[type[BaseModel]] = [Study]
    while waiting:
        model = waiting.pop(0)
        if model not in known:
            known[model] = None
            waiting += [inner for field in model.model_fields.values() for inner in _models(field.annotation)]
    return list(known)


def _page_of(model: type[BaseModel]) -> str:
    return next(name for name, modules in PLACES.items() if model.__module__.startswith(modules))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _models(inner)


def _target(model: type[BaseModel]) -> str:
    return f"key-{model.__name__.lower()}"


def _name(model: type[BaseModel]) -> str:
    """The heading: `kind: NAME` for what a kind picks, else what the class is called."""
    field = model.model_fields.get("kind")
    literal = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    return f"`kind: {literal[0]}`" if len(literal) == 1 else model.__name__


def _section(model: type[BaseModel]) -> str:
    meanings = descriptions(model)
    rows = [
        (f"`{name}`", _type(field), _default(field), meanings[name])
        for name, field in model.model_fields.items()
        if name != "kind" or get_origin(field.annotation) is not Literal
    ]
    if model is Study:
        texts = "mapping of names to text"
        types = ("settings of a [finetuning](#key-finetune)", texts, texts)
        rows += [(f"`{key}`", of, "none", BESIDE[key]) for key, of in zip(BESIDE, types, strict=True)]
    if model.__name__ in ("Finetune", "TrainWire"):
        rows.append(("`sweep`", "mapping of dotted settings to lists", "none", SWEEP_MEANING))
    head = f"({_target(model)})=\n\n## {'The study' if model is Study else _name(model)}\n\n{summary(model)}\n"
    return head + ("\n" + _table(rows) if rows else "\nIt has no settings of its own.\n")


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    return (
        "\n".join([*lines, *("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)]) + "\n"
    )


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {bound:g}" if isinstance(bound := getattr(each, key), int | float) else ""
        for each in field.metadata
        if isinstance(each, annotated_types.Ge | annotated_types.Gt | annotated_types.Le | annotated_types.Lt)
        for key, sign in _BOUNDS.items()
        if hasattr(each, key)
    ]
    return " ".join([_words(field.annotation), ", ".join(bounds)]).strip()


def _words(annotation: Any) -> str:
    """A type in words, with links to the settings it names."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "none"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{_name(annotation)}](#{_target(annotation)})"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        return _words(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(each) for each in inner if each is not type(None)))
    if origin in (tuple, list):
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"mapping of {_words(inner[0])} to {_words(inner[1])}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    return "none" if value in (None, {}, (), PydanticUndefined) else _shown(value)


def _shown(value: Any) -> str:
    """A default as YAML would say it; of settings, only their kind."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", "")
        return f"`{{kind: {kind}}}`" if kind else "its defaults"
    if isinstance(value, tuple | list):
        return ", ".join(_shown(each) for each in value)
    return f"`{value}`"

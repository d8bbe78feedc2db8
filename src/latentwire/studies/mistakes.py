"""A validation error of pydantic as one sentence that uses the study's own keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from latentwire import kinds
from latentwire.errors import UserError, one_of
from latentwire.studies.naming import FILES, MODELS
from latentwire.studies.spec import Study

SHARED = "finetuning"
"""The study's key for settings that all of its finetune stages share; a stage's own settings override them."""
SWEEP, SWEPT = "sweep", ("wire", "finetune")
"""A stage's key for settings with several values, and the kinds of stage that may have it."""
Path = tuple[str | int, ...]


def mistake(error: ValidationError, whole: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """The first mistake: the key's path, what was found, what was expected.

    Args:
        error: What pydantic raised.
        whole: What was validated.
        written: What the user wrote, before shared settings were copied into stages.
    """
    errors = error.errors(include_url=False)
    # A misspelt key is two mistakes, an unknown key and a missing one; the unknown one says more.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    path = _path(first["loc"], whole)
    key = ".".join(map(str, _as_written(path, written)))
    kind, value, message = first["type"], first["input"], first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{key}: found an unknown key, expected {one_of(str(path[-1]), _keys(path[:-1], whole))}."
    if kind == "missing":
        return f"{key}: found nothing, expected a value."
    if kind in ("tuple_type", "list_type", "dict_type", "model_type", "model_attributes_type"):
        expected = "a list" if kind in ("tuple_type", "list_type") else "a mapping"
        return f"{key}: found {shown(value)}, expected {expected}."
    if kind == "too_short":
        return f"{key}: found {shown(value)}, expected at least {first['ctx']['min_length']} of them."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = value.get("kind") if isinstance(value, dict) else None
        valid = [name for option in _models_at(path, whole) for name in _kinds(option)]
        expected = f"{one_of(str(tag), valid)}, or {kinds.OWN} of your own"
        return f"{key}.kind: found {'nothing' if tag is None else repr(tag)}, expected {expected}."
    if kind == "string_pattern_mismatch":
        return f"{key}: found {shown(value)}, expected letters, digits, '_', '-' and '.', a letter or digit first."
    if kind == "value_error" and message.startswith("kind: "):
        return f"{key}.{message}."
    if kind == "value_error" and "found" in message:
        return f"{key}: {message}."
    if "Input should be " in message:
        expected = message.removeprefix("Input should be ").split(", unable")[0]
        return f"{key}: found {shown(value)}, expected {expected}."
    return f"{key}: found {shown(value)}; {message[0].lower()}{message[1:]}."


def shown(value: Any) -> str:
    """A value as an error message shows it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path(location: Path, value: Any) -> Path:
    """Pydantic's location without the tags of unions, which are not keys of the input."""
    path: list[str | int] = []
    entered = True
    for at, part in enumerate(location):
        # A mapping's tag comes right after its path, and may also be the name of one of its keys.
        tag = entered and isinstance(value, dict) and value.get("kind") == part
        entered = not tag
        if isinstance(value, dict) and not tag and (part in value or at == len(location) - 1):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int):
            path.append(part)
            value = value[part]
    return tuple(path)


def _as_written(path: Path, written: Mapping[str, Any]) -> Path:
    """The path where the user wrote it: a stage's setting may come from the shared ones."""
    shared = (SHARED, *path[2:])
    return shared if path[:1] == ("stages",) and not _has(written, path) and _has(written, shared) else path


def _has(value: Any, path: Path) -> bool:
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _keys(path: Path, whole: Mapping[str, Any]) -> list[str]:
    """The keys allowed at a path."""
    value: Any = whole
    for part in path:
        value = value[part]
    kind = value.get("kind") if isinstance(value, dict) else None
    options = [*_outside(value), *_models_at(path, whole)]
    fitting = [option for option in options if kind in _kinds(option)] or options
    beside = [] if path else [SHARED, MODELS, FILES]
    if path[:1] == ("stages",) and len(path) == 2 and kind in SWEPT:
        beside = [SWEEP]
    return [*(name for option in fitting for name in option.model_fields), *beside]


def _models_at(path: Path, value: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models allowed at a path, following `kind` on the way."""
    annotation: Any = Study
    for part in path:
        options = [*_outside(value), *_models(annotation)]
        kind = value.get("kind") if isinstance(value, dict) else None
        model = next((option for option in options if kind in _kinds(option)), next(iter(options), None))
        if model is not None:
            annotation = model.model_fields[str(part)].annotation
        else:  # a mapping's values or a list's entries
            annotation = get_args(annotation)[1 if get_origin(annotation) is dict else 0]
        value = value[part]
    yield from _models(annotation)


def _outside(value: Any) -> Iterator[type[BaseModel]]:
    """The class from outside that a mapping names by its path."""
    path = value.get("kind") if isinstance(value, dict) else None
    if kinds.is_path(path):
        with suppress(UserError):
            yield kinds.load(str(path), kinds.Kind)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for option in get_args(annotation):
            yield from _models(option)


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()

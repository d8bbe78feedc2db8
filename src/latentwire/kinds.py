"""Kinds: how a configuration names the class that reads it, one of this package or one of your own.

A wire, an encoder, an objective is a pydantic class with a `kind`. Those of this package have short names
(`kind: self`). Every other class is named by where it is imported from, `kind: package.module:Class`, and needs no
registration: YAML, the command line and checkpoints take the path and load the class.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

from latentwire.errors import UserError, one_of
from latentwire.importing import importable_here as importable_here

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
OWN = "package.module:Class"
"""How the path of a class from outside is written."""


class Kind(BaseModel):
    """A configuration that its `kind` names.

    A class of this package sets a literal, `kind: Literal["self"] = "self"`. A class that sets none is named by
    its path, so that a subclass of a built-in kind is never taken for its parent.

    Example:
        >>> class KeyNorm(ScoredWire):  # in mypress.py
        ...     def score(self, lm, prefix): ...
        >>> KeyNorm(ratio=4).kind
        'mypress:KeyNorm'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = ""
    not_options: ClassVar[frozenset[str]] = frozenset({"kind"})
    """Fields that are not written as options."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = inspect.get_annotations(cls)
        if "kind" not in own:
            path = f"{cls.__module__}:{cls.__qualname__}"
            cls.__annotations__ = {**own, "kind": Literal[path]}
            cls.kind = path
        super().__init_subclass__(**kwargs)

    @classmethod
    def summary(cls) -> str:
        """The first sentence of the docstring: what this kind is."""
        text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        return re.split(r"(?<=[.])\s", text)[0]

    @classmethod
    def options(cls) -> dict[str, str]:
        """Each option and what it takes, as `{"mask": "causal|prefix|segments"}`; required ones end in `!`.

        A field's `title` says what it takes, where its type alone would not.
        """
        fields = {name: each for name, each in cls.model_fields.items() if name not in cls.not_options}
        return {
            name: (each.title or _values(each.annotation)) + "!" * each.is_required()
            for name, each in fields.items()
        }


def is_path(text: object) -> bool:
    """Whether a text is written as the path of a class, `package.module:Class`."""
    return isinstance(text, str) and PATH.fullmatch(text) is not None


def found(path: str, field: str) -> Any:
    """What lies at `package.module:Name`.

    Raises:
        UserError: no such module or name, or the module fails when it is imported.
    """
    name, _, attribute = path.partition(":")
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{field}: found {path!r}, whose module needs {error.name!r}; install it.") from error
        raise UserError(
            f"{field}: found {path!r}, expected {OWN}; there is no module {error.name!r}, neither installed nor "
            "in the current directory."
        ) from error
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else ""
        raise UserError(
            f"{field}: found {path!r}, whose module fails on import: {type(error).__name__}: {line}"
        ) from error
    if not hasattr(module, attribute):
        valid = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
        raise UserError(f"{field}: found {path!r}, expected {one_of(attribute, valid)} in {name}.")
    return getattr(module, attribute)


def load(path: str, base: type[Kind], field: str = "kind") -> type[Any]:
    """The class at `package.module:Class`.

    Args:
        base: what it must derive from. field: what the path was given as, for the error message.

    Raises:
        UserError: no such class, or one that does not derive from `base` or leaves a method undefined.

    Example:
        >>> load("mypress:KeyNorm", Wire)
        <class 'mypress.KeyNorm'>
    """
    made = found(path, field)
    wanted = f"{base.__module__}:{base.__name__}"
    if not isinstance(made, type) or not issubclass(made, base):
        what = "a class of another kind" if isinstance(made, type) else f"of type {type(made).__name__}"
        raise UserError(f"{field}: found {path!r}, {what}, expected a class that derives from {wanted}.")
    if missing := sorted(getattr(made, "__abstractmethods__", ())):
        raise UserError(
            f"{field}: found {path!r}, which does not define {missing[0]}(); expected it, see {wanted}."
        )
    if path not in kinds_of(made):
        own = kinds_of(made)[0]
        expected = repr(own) if is_path(own) else "a class that sets no kind of its own"
        raise UserError(f"{field}: found {path!r}, whose kind is {own!r}; expected {expected}.")
    return made


def code(configuration: Any) -> dict[str, str]:
    """SHA-256 of the source file of every class from outside that a configuration names, by path.

    Args:
        configuration: JSON values. A path may have options after it, as a wire has.
    """
    if isinstance(configuration, Mapping):
        configuration = list(configuration.values())
    if isinstance(configuration, list | tuple):
        return {path: digest for each in configuration for path, digest in code(each).items()}
    path = PATH.match(configuration) if isinstance(configuration, str) else None
    module = sys.modules.get(path[0].partition(":")[0]) if path else None
    file = getattr(module, "__file__", None)
    if path is None or file is None or not hasattr(module, path[0].partition(":")[2]):
        return {}
    return {path[0]: sha256(Path(file).read_bytes()).hexdigest()}


@dataclass(frozen=True)
class KindOf:
    """Marks a union of kinds in a pydantic annotation: one of its members, or a class from outside by its path.

    Args:
        base: what a class from outside must derive from.

    Example:
        >>> EncoderKind = Annotated[SelfConfig | BytesConfig, KindOf(EncoderConfig)]
    """

    base: type[Kind]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """One of the members, or any mapping whose `kind` is the path of a class."""
        made = handler(schema)
        own = {"type": "string", "pattern": f"^{PATH.pattern}$", "description": f"{OWN} of your own."}
        return {
            "anyOf": [made, {"type": "object", "properties": {"kind": own}, "required": ["kind"]}],
        }

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        known = get_args(source)
        schema = handler.generate_schema(Annotated[source, Field(discriminator="kind")])

        def validate(value: Any, inner: Callable[[Any], Any]) -> Any:
            if isinstance(value, self.base):
                return value
            kind = value.get("kind") if isinstance(value, Mapping) else None
            if not is_path(kind):
                return inner(value)
            try:
                made = load(str(kind), self.base)
            except UserError as error:
                raise ValueError(str(error).rstrip(".")) from error
            return made.model_validate(value)

        def serialize(value: Any, inner: Callable[[Any], Any], info: SerializationInfo) -> Any:
            if type(value) in known:
                return inner(value)
            made = value.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults)
            return {"kind": value.kind, **made}

        return core_schema.no_info_wrap_validator_function(
            validate,
            schema,
            serialization=core_schema.wrap_serializer_function_ser_schema(serialize, info_arg=True, schema=schema),
        )


def members(annotation: Any) -> Iterator[type[Kind]]:
    """The classes that a union of kinds lists."""
    if isinstance(annotation, type) and issubclass(annotation, Kind):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for option in get_args(annotation):
            yield from members(option)


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The values that a class takes as its `kind`."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


_WORDS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false", Path: "PATH"}


def _values(annotation: Any) -> str:
    """What a field takes, for a help text."""
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin is Annotated:
        return _values(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return "|".join(_values(each) for each in get_args(annotation) if each is not type(None))
    return _WORDS.get(annotation, getattr(annotation, "__name__", "VALUE").upper())

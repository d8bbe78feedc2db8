"""Pages made from the package's own lists: kinds of wires, public names, and example scripts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import latentwire
from latentwire import wires

ROOT = Path(__file__).parents[2]


def wire_kinds() -> str:
    """Every kind of wire with its options and their meaning, as Markdown."""
    from latentwire.studies.field_docs import descriptions

    parts = []
    for name, wire in wires.KINDS.items():
        options = wire.options()
        spelling = name + "".join(
            f",{key}={takes[:-1]}" if takes.endswith("!") else f"[,{key}={takes}]"
            for key, takes in options.items()
        )
        meanings = descriptions(wire)
        rows = [f"| `{key}` | {meanings.get(key, '')} |" for key in options if meanings.get(key)]
        table = "\n".join(["| option | meaning |", "| --- | --- |", *rows]) if rows else ""
        parts.append(f"## `{name}`\n\n```text\n{spelling}\n```\n\n{inspect.cleandoc(wire.summary())}\n\n{table}")
    return "\n\n".join(parts)


def public_names() -> str:
    """Directives that document every public name, functions first."""
    names = [name for name in latentwire.__all__ if name != "__version__"]
    functions = [name for name in names if inspect.isfunction(getattr(latentwire, name))]
    parts = ["## Functions", *(_directive("autofunction", name) for name in functions), "## Classes"]
    for name in names:
        if name not in functions:
            parts.append(_directive("autoclass", name, ":members:", ":exclude-members: model_config"))
    return "\n\n".join(parts)


def _directive(kind: str, name: str, *options: str) -> str:
    lines = "".join(f"   {option}\n" for option in options)
    return f"```{{eval-rst}}\n.. {kind}:: latentwire.{name}\n{lines}```"


def examples() -> str:
    """Every file of `examples/`, whole."""
    parts = []
    for path in sorted((ROOT / "examples").glob("*.*")):
        text, language = path.read_text(encoding="utf-8"), {".py": "python", ".yaml": "yaml"}.get(path.suffix)
        if language is not None:
            parts.append(f"## {path.name}\n\n```{language}\n{text}```")
    return "\n\n".join(parts)


def fenced(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Fenced code of docstrings, as reStructuredText writes it."""
    inside = False
    made = []
    for line in lines:
        if line.strip().startswith("```"):
            indent, inside = line[: len(line) - len(line.lstrip())], not inside
            made += [f"{indent}.. code-block:: python", ""] if inside else [""]
        else:
            made.append(f"    {line}" if inside else line)
    lines[:] = made

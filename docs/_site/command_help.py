"""The reference of the commands, made from the command line itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from latentwire.cli import app

_TYPES = {"str": "text", "int": "integer", "int range": "integer", "float": "number"}


def page() -> str:
    """Every command with its arguments and options, as Markdown."""
    return "\n\n".join(_section(name, command) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, `runs list` after `report`."""
    yield from _below("latentwire", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if getattr(command, "commands", None) is None:
        yield name, command
        return
    for word, inner in sorted(command.commands.items()):
        yield from _below(f"{name} {word}", inner)


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    text = " ".join((command.help or "").split())
    needed = [
        f"{each.opts[0]} {each.name.upper()}"
        for each in command.params
        if each.required and each.opts[0][0] == "-"
    ]
    usage = " ".join([name, *needed, *command.collect_usage_pieces(context)])
    parts = [f"({name.replace(' ', '-')})=\n\n## `{name}`\n\n{text}\n\n```text\n{usage}\n```"]
    for kind in ("argument", "option"):
        records = [
            each.get_help_record(context)
            for each in command.params
            if each.param_type_name == kind and each.name != "help"
        ]
        if rows := [record for record in records if record]:
            parts.append(_table(kind, rows))
    return "\n\n".join(parts)


def _table(head: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head} | meaning |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {_spelling(a)} | {_cell(b)} |" for a, b in rows)])


def _spelling(text: str) -> str:
    """`-o, --out PATH` with what is typed in backquotes."""
    typed = re.sub(r"(?<![\w-])(--?[\w-]+)", r"`\1`", _cell(text))
    return re.sub(r"\\<(?:list\[)?([\w ]+)\]?>", lambda of: f"*{_TYPES.get(of[1].lower(), of[1])}*", typed)


def _cell(text: str) -> str:
    plain = " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")
    return plain.replace("[required]", "**required**")

"""The contexts that a wire's messages are exported for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.lm.prompts import Prompt
from latentwire.tasks.data_files import decode, read_bytes


@dataclass(frozen=True)
class ExportLine:
    """A context, with the question that follows it or none."""

    context: str
    question: str = ""

    @property
    def prompt(self) -> Prompt:
        return Prompt(context=self.context, question=self.question)


def read(path: Path) -> list[ExportLine]:
    """The lines of a file: JSON objects with `context` and perhaps `question`, or one context a line.

    Raises:
        UserError: It cannot be read, or a line has no context.
    """
    lines = [line for line in decode(read_bytes(path), str(path)).split("\n") if line.strip()]
    if not lines:
        raise UserError(f"contexts: found no line in {path}, expected a context on each.")
    return [_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _line(line: str, where: str) -> ExportLine:
    if not line.lstrip().startswith("{"):
        return ExportLine(line.strip())
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"contexts: {where} is no JSON object: {error}.") from error
    context, question = found.get("context"), found.get("question", "")
    if not isinstance(context, str) or not context or not isinstance(question, str):
        raise UserError(
            f'contexts: {where}: found {line[:60]!r}, expected "context" and perhaps "question" as text.'
        )
    return ExportLine(context, question)


def shown(asked: Sequence[ExportLine], at: int) -> dict[str, str]:
    """What an index says of one of them."""
    return {"context": asked[at].context, "question": asked[at].question}

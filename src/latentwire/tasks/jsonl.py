"""A user's own examples, from a file with one JSON object per line.

    {"context": "…", "question": "…", "answers": ["Paris", "the city of Paris"]}
    {"context": "…", "question": "…", "choices": ["Paris", "Rome"], "gold": 0}

Answers that end in `#### N`, worked solutions as GSM8K has them, make a task that is scored by that number.
`answer` is another name for `gold`, the position of the right choice counted from 0. `id` and
`group` are optional. Other fields are ignored, unless one looks like a misspelt field that the
line lacks.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Task
from latentwire.tasks.data_files import digest, first_mistake
from latentwire.tasks.row_task import MAX_UNUSABLE, task_of
from latentwire.tasks.rows import Row, read_rows

_Text = Annotated[str, StringConstraints(pattern=r"\S")]
# `type(…) is int`, because True is an int too, and no name.
_Name = Annotated[_Text, BeforeValidator(lambda name: str(name) if type(name) is int else name)]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)

    context: str
    question: _Text
    answers: list[_Text] = []
    choices: list[_Text] = []
    gold: int | None = None
    answer: int | None = None
    id: _Name | None = None
    group: _Name | None = None


def task(path: Path, name: str) -> Task:
    """The examples of `path` in the order of the file: a `choice` task if they have choices, a `solution` task if
    nearly all answers are worked solutions (see `row_task.task_of`), else `span`.

    The file is the file: `source(split)` yields the same examples for every split, and keeping
    training and test files apart is up to whoever names them. Without an `id`, an example is named
    by a hash of its content and its line; without a `group`, examples with the same context are one
    group, and an example with an empty context is a group of its own. Up to one line in twenty that is
    no such object is skipped, and the task's remark names the first.

    Raises:
        UserError: the file cannot be read, more lines are no such object, an id comes twice, lines with answers
            and lines with choices are mixed, or the file holds no example. The line and the field are named.
    """
    examples: list[Example] = []
    lines: dict[str, int] = {}
    unusable: list[UserError] = []
    for row in read_rows(path):
        try:
            example = _example(row)
        except UserError as error:
            unusable.append(error)
            continue
        if example.id in lines:
            first = lines[example.id]
            raise UserError(f"{row.where}: expected each id once, found {example.id!r} on line {first} too.")
        if examples and bool(examples[0].choices) != bool(example.choices):
            found, before = ("choices", "answers") if example.choices else ("answers", "choices")
            raise UserError(f"{row.where}: expected {before!r} as on the lines before, found {found!r}.")
        lines[example.id] = row.number
        examples.append(example)
    total = len(examples) + len(unusable)
    if len(unusable) > MAX_UNUSABLE * total:
        counted = f" ({len(unusable):,} of {total:,} lines cannot be used)" if len(unusable) > 1 else ""
        raise UserError(f"{str(unusable[0]).removesuffix('.')}{counted}.")
    if not examples:
        raise UserError(f"{path}: expected at least one example, found none.")
    skipped = [f"{len(unusable):,} of {total:,} lines are skipped, the first: {unusable[0]}"] if unusable else []
    return task_of(examples, name, str(path), skipped)


def _example(line: Row) -> Example:
    row = _parse(line)
    answered = row.answers if row.answers else row.choices
    id_ = row.id or f"{digest(row.context, row.question, *answered)}-{line.number}"
    return Example(
        id=id_,
        group=row.group or (digest(row.context) if row.context.strip() else id_),
        context=row.context,
        question=row.question,
        answers=tuple(row.answers),
        choices=tuple(row.choices),
        gold=_gold(row, line.where),
    )


def _parse(line: Row) -> _Row:
    where = line.where
    # Exports of tables write null where a line lacks a field.
    row = {key: value for key, value in line.fields.items() if value is not None}
    lacking = [field for field in _Row.model_fields if field not in row]
    for key in row:
        known = key in _Row.model_fields
        meant = [] if known else difflib.get_close_matches(key, lacking, n=1, cutoff=0.75)
        if meant:
            raise UserError(f"{where}: found the unknown field {key!r}, expected {meant[0]!r}.")
    try:
        return _Row.model_validate(row)
    except ValidationError as error:
        raise UserError(f"{where}: {first_mistake(error)}") from error


def _gold(row: _Row, where: str) -> int:
    """The position of the right choice, −1 for a line with answers."""
    given = [gold for gold in (row.gold, row.answer) if gold is not None]
    if bool(row.answers) == bool(row.choices):
        found = "both" if row.answers else "neither"
        raise UserError(f"{where}: expected either 'answers' or 'choices', not empty, found {found}.")
    if row.answers:
        if given:
            raise UserError(f"{where}: expected 'gold' beside 'choices' only, found it beside 'answers'.")
        return -1
    if len(row.choices) < 2 or len(set(row.choices)) < len(row.choices):
        raise UserError(f"{where}: field 'choices': expected two or more, all different, found {row.choices}.")
    if len(given) != 1 or not 0 <= given[0] < len(row.choices):
        raise UserError(
            f"{where}: expected one of 'gold' and 'answer', from 0 to {len(row.choices) - 1}, "
            f"found {given or 'neither'}."
        )
    return given[0]

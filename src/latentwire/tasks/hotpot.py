"""Questions over several paragraphs, from an official file of HotpotQA (Yang et al. 2018).

A list of `{_id, question, answer, context: [[title, [sentence, …]], …]}`; other fields are ignored. Scored by
exact match and F1 of the answer, which the official script computes as SQuAD's does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Task
from latentwire.tasks.data_files import decode, digest, first_mistake, read_bytes
from latentwire.tasks.row_task import file_task
from latentwire.tasks.rows import suffix

_Text = Annotated[str, StringConstraints(pattern=r"\S")]


class _Row(BaseModel):
    id: _Text = Field(alias="_id")
    question: _Text
    answer: _Text
    context: list[tuple[str, list[str]]]


def task(path: Path, name: str) -> Task:
    """The questions of `path`, in the order of the file, as a `span` task.

    A context is its paragraphs in the file's order, a line each, every one after its title; `group` is a
    hash of it. The file is the file: every split has the same examples. A file that is no `.json` holds rows, as
    the hub has them.

    Example:
        >>> task(Path("hotpot_dev_distractor_v1.json"), "hotpotqa").examples(limit=1)[0].question

    Raises:
        UserError: the file cannot be read, has another format, repeats an id, or holds no question.
    """
    if suffix(path) != ".json":
        return file_task(path, name)
    try:
        rows = TypeAdapter(list[_Row]).validate_json(decode(read_bytes(path), str(path)))
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error)}") from error
    examples: dict[str, Example] = {}
    for row in rows:
        if row.id in examples:
            raise UserError(f"{path}: expected each question's id once, found {row.id!r} twice.")
        context = "\n".join(f"{title}: {''.join(sentences).strip()}" for title, sentences in row.context)
        examples[row.id] = Example(
            id=row.id,
            group=digest(context),
            context=context,
            question=row.question,
            answers=(row.answer,),
        )
    if not examples:
        raise UserError(f"{path}: expected at least one question, found none.")
    kept = tuple(examples.values())
    return Task(name=name, answer="span", source=lambda split: kept, max_new_tokens=64)

"""Questions about paragraphs, from a file in the format of SQuAD v1.1 or v2 (Rajpurkar et al. 2016, 2018).

XQuAD and most translations of SQuAD share it: `data[].paragraphs[].{context, qas[].{id, question,
answers[].text, is_impossible}}`; other fields are ignored. Files of rows are read by `row_task`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from pydantic import BaseModel, ValidationError

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Task
from latentwire.tasks.data_files import decode, digest, first_mistake, read_bytes
from latentwire.tasks.row_task import file_task
from latentwire.tasks.rows import suffix


class _Answer(BaseModel):
    text: str


class _Question(BaseModel):
    id: str
    question: str
    answers: list[_Answer] = []
    is_impossible: bool = False


class _Paragraph(BaseModel):
    context: str
    qas: list[_Question]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _File(BaseModel):
    data: list[_Article]


def task(path: Path, name: str) -> Task:
    """The answerable questions of `path`, in the order of the file, as a `span` task.

    A file that is no `.json`, or one whose JSON is a list, holds rows: `{context, question, answers}`, or as the
    hub has them.

    The file is the file: `source(split)` yields the same examples for every split, and keeping
    training and test files apart is up to whoever names them. `group` is a hash of the paragraph's
    text. The unanswerable questions of SQuAD v2 are left out, and a warning says how many.

    Example:
        >>> len(task(Path("xquad_en.json"), "xquad").examples())
        1190

    Raises:
        UserError: the file cannot be read, has another format, repeats a question's id, or holds no answerable
            question.
    """
    if suffix(path) != ".json" or read_bytes(path)[:64].lstrip()[:1] == b"[":
        return file_task(path, name)
    examples, unanswerable = _read(path)
    if unanswerable:
        warnings.warn(
            f"{path}: {unanswerable} unanswerable questions are left out, {len(examples)} are kept",
            stacklevel=2,
        )
    if not examples:
        raise UserError(f"{path}: expected at least one answerable question, found none.")
    # 64: answers of 20 words and more exist, and a shorter limit would call them wrong.
    return Task(name=name, answer="span", source=lambda split: examples, max_new_tokens=64)


def _read(path: Path) -> tuple[tuple[Example, ...], int]:
    """The examples of `path`, and how many questions have no answer."""
    try:
        file = _File.model_validate_json(decode(read_bytes(path), str(path)))
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error)}") from error
    examples: dict[str, Example] = {}
    unanswerable = 0
    for paragraph in (paragraph for article in file.data for paragraph in article.paragraphs):
        group = digest(paragraph.context)
        for question in paragraph.qas:
            if question.is_impossible:
                unanswerable += 1
                continue
            # Several annotators often gave the same answer: kept once, in the order given.
            answers = tuple(dict.fromkeys(answer.text for answer in question.answers))
            if not answers or not all(answer.strip() for answer in answers):
                raise UserError(
                    f"{path}: question {question.id!r} has no 'is_impossible', "
                    f"so expected texts under 'answers', found {list(answers)}."
                )
            if question.id in examples:
                raise UserError(f"{path}: expected each question's id once, found {question.id!r} twice.")
            examples[question.id] = Example(
                id=question.id,
                group=group,
                context=paragraph.context,
                question=question.question,
                answers=answers,
            )
    return tuple(examples.values()), unanswerable

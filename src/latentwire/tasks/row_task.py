"""Tasks of rows whatever their columns are called: from a file, or from a dataset of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks.base import AnswerKind, Task
from latentwire.tasks.hub import Dataset, hub_rows
from latentwire.tasks.records import Records, read_records
from latentwire.tasks.rows import read_rows
from latentwire.tasks.solutions import MARK, solution_number

MAX_UNUSABLE = 0.05
"""Up to this share of the rows, unusable ones are skipped and counted; beyond it the source is refused."""


def file_task(
    path: Path, name: str, fields: Mapping[str, str] | None = None, max_unusable: float = MAX_UNUSABLE
) -> Task:
    """The questions of a file of rows, in its order: JSON, JSON Lines, CSV, TSV or Parquet, also `.gz` or `.xz`.

    The file is the file: every split has the same examples.

    Args:
        path: the file.
        name: what the task is called.
        fields: for what is called otherwise than expected, the column that holds it; see `tasks.records`.
        max_unusable: the share of rows, in [0, 1), up to which unusable ones are skipped.

    Example:
        >>> file_task(Path("squad_val.jsonl.xz"), "squad").answer
        'span'

    Raises:
        UserError: the file cannot be read, or its rows are not questions with answers or choices.
    """
    return _task(read_records(read_rows(path), str(path), fields, max_unusable), name, str(path), max_unusable)


def hub_task(dataset: Dataset, name: str, max_unusable: float = MAX_UNUSABLE) -> Task:
    """The questions of a dataset of the hub, in its order; every split of the task has the same examples.

    Example:
        >>> hub_task(named("squad", split="validation"), "squad")

    Raises:
        UserError: it cannot be loaded, or its rows are not questions with answers or choices.
    """
    place = f"{dataset.id} ({dataset.split})"
    return _task(read_records(hub_rows(dataset), place, dataset.fields, max_unusable), name, place, max_unusable)


def _task(records: Records, name: str, place: str, max_unusable: float) -> Task:
    examples: dict[str, Example] = {}
    for item in records.items:
        if not isinstance(item, Example):
            shape = "plain text" if isinstance(item, str) else "conversations"
            raise UserError(f"{place}: found {shape}, expected questions with answers, or with choices and gold.")
        if item.id in examples:
            raise UserError(f"{place}: found the id {item.id!r} twice, expected each once.")
        examples[item.id] = item
    remarks = [f"{place}: {records.remark}."] if records.remark else []
    return task_of(list(examples.values()), name, place, remarks, max_unusable)


def task_of(
    examples: Sequence[Example],
    name: str,
    place: str,
    remarks: Sequence[str] = (),
    max_unusable: float = MAX_UNUSABLE,
) -> Task:
    """A task of examples: `choice` if they have choices, `solution` if they have worked solutions, else `span`.

    Answers are worked solutions if nearly all end in `#### N`; the others, up to `max_unusable` of them, are left
    out. With more of them every answer is a span, and the task's remark names the first.

    Args:
        examples: at least one, all with answers or all with choices.
        name: what the task is called.
        place: what messages call the source.
        remarks: sentences on what was skipped already.
        max_unusable: the share of examples without a number up to which they are left out.

    Raises:
        UserError: some have answers and some have choices.
    """
    kept, remarks = list(examples), list(remarks)
    if len({bool(example.choices) for example in examples}) > 1:
        first, other = (next(e for e in examples if bool(e.choices) == choices) for choices in (True, False))
        raise UserError(
            f"{place}: found choices in {first.id} and answers in {other.id}, expected one kind of rows in a task."
        )
    answer: AnswerKind = "choice" if examples[0].choices else "span"
    odd = [example for example in examples if not _solved(example)]
    if answer == "span" and len(odd) < len(examples):
        reason = f"{odd[0].id} ({odd[0].answers[0][-40:]!r}) has no number after {MARK}" if odd else ""
        if len(odd) <= max_unusable * len(examples):
            answer = "solution"
            left_out = {example.id for example in odd}
            kept = [example for example in examples if example.id not in left_out]
            if odd:
                remarks.append(f"{place}: {len(odd):,} worked solutions are left out: {reason}.")
        elif any(MARK in text for example in examples for text in example.answers):
            remarks.append(
                f"{place}: answers are scored as spans and not as worked solutions, for {len(odd):,} of "
                f"{len(examples):,} are none: {reason}."
            )
    source = tuple(kept)
    return Task(
        name=name,
        answer=answer,
        source=lambda split: source,
        # 64: answers of 20 words and more exist, and a shorter limit would call them wrong.
        max_new_tokens=256 if answer == "solution" else 64,
        stop=("Question:",) if answer == "solution" else ("\n",),
        remark=" ".join(remarks),
    )


def _solved(example: Example) -> bool:
    """Whether every answer is a worked solution whose number can be read."""
    texts = example.answers
    return bool(texts) and all(MARK in text and solution_number(text) is not None for text in texts)

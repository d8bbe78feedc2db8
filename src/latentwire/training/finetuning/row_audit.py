"""The audit of a collator: on its own packed rows, who sees whom, and is the right token learned?"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from latentwire.lm.masks.reading import Reading
from latentwire.lm.model import LM
from latentwire.lm.scoring.questions import IGNORE
from latentwire.training.finetuning.packing import Rows

LOOKS = 8


@torch.no_grad()
def audit_rows(lm: LM, rows: Rows, seed: int = 0) -> list[str]:
    """Exchange up to `LOOKS` tokens of the rows, one at a time, and return what should not have happened.

    A state that predicts a label must not change with it, no state of another document may change, and
    a label must be the very token of its column.
    """
    problems = []
    if bool(((rows.labels != IGNORE) & (rows.labels != rows.ids)).any()):
        problems.append("a label is not the token of its column")
    vocabulary = lm.head(lm.embed(rows.ids[:1, :1])).shape[-1]
    labelled = [tuple(at) for at in (rows.labels != IGNORE).nonzero().tolist()]
    reading = Reading(rows.columns, rows.layers)
    clean = lm.run(rows.ids, rows.columns, reading)
    documents = rows.columns.documents
    looks = random.Random(f"{seed}/row audit").sample(labelled, min(LOOKS, len(labelled)))
    for exchanges in _apart(looks):
        # All rows every time: in the very shape in which the rows are trained on, with the kernel made for it.
        ids = rows.ids.clone()
        for row, column in exchanges:
            ids[row, column] = (ids[row, column] + 1) % vocabulary
        changed = (lm.run(ids, rows.columns, reading) != clean).any(-1)
        for row, column in exchanges:
            if bool(changed[row, column - 1]):
                problems.append(f"LEAK: the state that predicts column {column} of row {row} sees its label")
            others = (documents[row] != documents[row, column]) & rows.columns.valid[row]
            if bool((changed[row] & others).any()):
                problems.append(f"LEAK: documents of row {row} see each other")
    if not bool(torch.isfinite(clean[rows.columns.valid]).all()):
        problems.append("the model's states on its own rows are not finite")
    return problems


def _apart(looks: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """The looks in as few passes as possible, no two of a pass in one row."""
    passes: list[list[tuple[int, ...]]] = []
    for look in looks:
        free = [each for each in passes if look[0] not in [row for row, _ in each]]
        if free:
            free[0].append(look)
        else:
            passes.append([look])
    return passes


def without_leaks(problems: list[str]) -> list[str]:
    """The problems that remain where a leak was asked for."""
    return [problem for problem in problems if not problem.startswith("LEAK")]

"""The audit of packed rows: which token sees which, and whether each label is the right token."""

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
    """Change up to `LOOKS` labelled tokens of the rows, one at a time, and report what should not have changed.

    The state that predicts a label must not change with it, no state of another document may change, and a label
    must be the token of its column.

    Returns:
        One sentence for each problem; those about leaks begin with `LEAK`.
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
        # All rows every time: the shape that is trained on, with the kernel compiled for it.
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
    """Group the looks into as few passes as possible, no two of a pass in one row."""
    passes: list[list[tuple[int, ...]]] = []
    for look in looks:
        free = [each for each in passes if look[0] not in [row for row, _ in each]]
        if free:
            free[0].append(look)
        else:
            passes.append([look])
    return passes


def without_leaks(problems: list[str]) -> list[str]:
    """The problems that remain if leaks were asked for."""
    return [problem for problem in problems if not problem.startswith("LEAK")]

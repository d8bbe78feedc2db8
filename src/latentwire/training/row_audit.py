"""The audit of a collator: on its own packed rows, who sees whom, and is the right token learned?"""

from __future__ import annotations

import random

import torch

from latentwire.lm.model import LM
from latentwire.lm.reading import Reading
from latentwire.lm.shared import IGNORE
from latentwire.training.packing import Rows

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
    clean = lm.run(rows.ids, rows.columns, Reading(rows.columns, rows.layers))
    documents = rows.columns.documents
    for row, column in random.Random(f"{seed}/row audit").sample(labelled, min(LOOKS, len(labelled))):
        one = torch.tensor([row], device=rows.ids.device)
        columns = rows.columns.select(one)
        ids = rows.ids[one].clone()
        ids[0, column] = (ids[0, column] + 1) % vocabulary
        alone = lm.run(rows.ids[one], columns, Reading(columns, rows.layers))
        changed = (lm.run(ids, columns, Reading(columns, rows.layers)) != alone).any(-1)[0]
        if bool(changed[column - 1]):
            problems.append(f"LEAK: the state that predicts column {column} of row {row} sees its label")
        if bool((changed & (documents[row] != documents[row, column]) & columns.valid[0]).any()):
            problems.append(f"LEAK: documents of row {row} see each other")
    if not bool(torch.isfinite(clean[rows.columns.valid]).all()):
        problems.append("the model's states on its own rows are not finite")
    return problems


def without_leaks(problems: list[str]) -> list[str]:
    """The problems that remain where a leak was asked for."""
    return [problem for problem in problems if not problem.startswith("LEAK")]

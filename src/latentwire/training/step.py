"""`Step`: one module whose forward is the whole training step.

Wire, reader and objectives run inside one forward, so that a distributed wrapper around it sees every parameter
exactly once: a head that is called apart from its backbone skips gradient averaging under DDP without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latentwire.lm.masks.reading import Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced
from latentwire.lm.scoring.questions import IGNORE
from latentwire.training.finetuning.objectives import Objective
from latentwire.training.finetuning.packing import Rows


@dataclass(frozen=True, eq=False)
class Losses:
    """total: what to send backward, a weighted sum over tokens. terms: each objective's sum.
    labels: how many tokens were learned. first_right, firsts: first answer tokens predicted right (a number on the
    device: to ask for it is to wait), and all of them. at: where gradient norms of single objectives are taken.
    skipped: by objective, how often there was no memory for it."""

    total: Tensor
    terms: dict[str, Tensor]
    labels: int
    first_right: Tensor
    firsts: int
    at: tuple[Tensor, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


class Step(nn.Module):
    """A reader and its objectives on packed rows."""

    def __init__(self, lm: LM, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.model = lm.model
        self._lm = lm
        self._objectives = objectives

    def forward(self, rows: Rows, share: float = 0.0) -> Losses:
        forced, first = read(self._lm, rows)
        terms = {each.name: each.loss(self._lm, forced) for each in self._objectives}
        total = torch.stack([each.weight * terms[each.name] for each in self._objectives]).sum()
        with torch.no_grad():
            right = self._lm.head(forced.hidden[first]).argmax(-1) == forced.labels[first]
        return Losses(total, terms, len(forced.labels), right.sum(), int(first.sum()), (forced.hidden,))


def labels_of(rows: Rows) -> int:
    """How many tokens rows teach."""
    return int((rows.labels[:, 1:] != IGNORE).sum())


def read(lm: LM, rows: Rows) -> tuple[Forced, Tensor]:
    """Hidden states `(N, D)` that predict the rows' N labels, and which of them are an answer's first `(N,)`."""
    hidden = lm.run(rows.ids, rows.columns, Reading(rows.columns, rows.layers))
    labelled = rows.labels[:, 1:] != IGNORE
    first = labelled & (rows.labels[:, :-1] == IGNORE)
    return Forced(hidden[:, :-1][labelled], rows.labels[:, 1:][labelled]), first[labelled]

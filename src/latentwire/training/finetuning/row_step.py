"""One step of a finetuning: a model, its objectives, and what these look at in packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from latentwire.lm.masks.reading import Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.scoring.questions import IGNORE
from latentwire.lm.tapping import States, depth, tapping
from latentwire.training.finetuning.packing import Rows
from latentwire.training.objectives import Term
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.training_step import Step


class RowStep(Step):
    """A model and its objectives on packed rows.

    Args:
        lm: The model to train.
        objectives: None of them may need a wire's message.
        adapting: Running numbers that scale them.
        teacher: The model as it was, for objectives that follow it.
    """

    def __init__(
        self, lm: LM, objectives: Sequence[Term], adapting: Adapting | None = None, teacher: LM | None = None
    ) -> None:
        super().__init__(objectives, adapting or Adapting(objectives))
        self.model = lm.model
        self._lm, self._teacher = lm, teacher
        self._taps = sorted({layer for objective in objectives for layer in objective.taps(depth(lm))})

    def evidence(self, part: Rows) -> list[RowEvidence]:
        return [RowEvidence(part, self._lm, self._teacher, self._taps, self.adapting.best)]


class RowEvidence:
    """An `AnswerEvidence` of packed rows.

    The teacher reads the same rows causally: under a prefix mask it is the model as one would have asked it
    without that mask.
    """

    textual = False

    def __init__(
        self, rows: Rows, lm: LM, teacher: LM | None = None, taps: Sequence[int] = (), best_accuracy: float = 0.0
    ) -> None:
        self.rows, self.lm, self.best_accuracy = rows, lm, best_accuracy
        self._teacher_lm, self._taps = teacher, taps
        self._tapped: list[Tensor] = []

    @property
    def teacher_lm(self) -> LM:
        assert self._teacher_lm is not None, "an objective has needs_teacher"
        return self._teacher_lm

    @cached_property
    def _labelled(self) -> Tensor:
        """`(B, T - 1)`: the columns whose next token is learned."""
        return self.rows.labels[:, 1:] != IGNORE

    @cached_property
    def _is_first(self) -> Tensor:
        return self._labelled & (self.rows.labels[:, :-1] == IGNORE)

    @cached_property
    def _student(self) -> tuple[Forced, States]:
        return self._read(self.lm, self.rows, self._tapped)

    @cached_property
    def _taught(self) -> tuple[Forced, States]:
        columns = replace(self.rows.columns, blocks=torch.full_like(self.rows.columns.blocks, CAUSAL))
        with torch.no_grad():
            return self._read(self.teacher_lm, replace(self.rows, columns=columns, layers=None))

    def _read(self, lm: LM, rows: Rows, tapped: list[Tensor] | None = None) -> tuple[Forced, States]:
        with tapping(lm, self._taps) as states:
            hidden = lm.run(rows.ids, rows.columns, Reading(rows.columns, rows.layers))
        if tapped is not None:
            tapped.extend(states[layer] for layer in self._taps)
        labelled = self._labelled
        forced = Forced(hidden[:, :-1][labelled], rows.labels[:, 1:][labelled])
        return forced, {layer: state[:, :-1][labelled] for layer, state in states.items()}

    @property
    def student(self) -> Forced:
        return self._student[0]

    @property
    def student_states(self) -> States:
        return self._student[1]

    @property
    def teacher(self) -> Forced | None:
        return self._taught[0]

    @property
    def teacher_states(self) -> States:
        return self._taught[1]

    @property
    def depth(self) -> int:
        return depth(self.lm)

    @cached_property
    def place(self) -> Tensor:
        columns = torch.arange(self._labelled.shape[1], device=self._labelled.device)
        start = torch.where(self._is_first, columns, 0).cummax(1).values
        return (columns - start)[self._labelled]

    @cached_property
    def first(self) -> Tensor:
        return self._is_first[self._labelled].nonzero()[:, 0]

    @property
    def lengths(self) -> Sequence[int]:
        if self.rows.answers is not None:
            return self.rows.answers
        ends = torch.cat([self.first, self.first.new_tensor([self.labels])])
        lengths: list[int] = ends.diff().tolist()
        return lengths

    @property
    def labels(self) -> int:
        return len(self.student.labels)

    @property
    def at(self) -> tuple[Tensor, ...]:
        # Every objective's gradient passes the lowest tapped layer, and not all of them the last hidden states.
        states = self._tapped[:1] or [self.student.hidden]
        return (states[0] if states[0].requires_grad else self.student.hidden,)


def labels_of(rows: Rows) -> int:
    """How many tokens rows teach."""
    return int((rows.labels[:, 1:] != IGNORE).sum())

"""`AnswerEvidence`: what objectives on answers may look at, whether a wire or a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced
from latentwire.lm.tapping import States


class AnswerEvidence(Protocol):
    """One reader's part of a step. N is the number of answer tokens; every pass runs at most once, on demand.

    Attributes:
        lm: The model as it is trained.
        best_accuracy: The highest running accuracy of first answer tokens so far.
    """

    lm: LM
    best_accuracy: float

    @property
    def student(self) -> Forced:
        """The model in training: hidden states `(N, D)` and labels `(N,)`."""

    @property
    def student_states(self) -> States:
        """Its hidden states `(N, D)` after the tapped layers."""

    @property
    def teacher_lm(self) -> LM:
        """The model as it was before training."""

    @property
    def teacher(self) -> Forced | None:
        """What that model says of the same answers, without gradients; None if it did not fit into memory."""

    @property
    def teacher_states(self) -> States:
        """The teacher's hidden states `(N, D)` after the tapped layers; only where there is a teacher."""

    @property
    def depth(self) -> int:
        """How many layers the model has."""

    @property
    def place(self) -> Tensor:
        """`(N,)`: each answer token's index within its answer."""

    @property
    def first(self) -> Tensor:
        """`(A,)`: which of the N tokens are an answer's first."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every answer in the whole step, of which this may be a part."""

    @property
    def labels(self) -> int:
        """N."""

    @property
    def textual(self) -> bool:
        """The readers of a wire read the text in this step: its accuracy says nothing about the wire."""

    @property
    def at(self) -> tuple[Tensor, ...]:
        """Where gradient norms of single objectives are taken: the message, or else the hidden states."""

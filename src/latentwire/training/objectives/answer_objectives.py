"""Objectives on the answer's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from latentwire.training.losses import summed_nats, token_nats
from latentwire.training.objectives.term import Term, first_of

if TYPE_CHECKING:
    from latentwire.training.objectives.answer_evidence import AnswerEvidence
    from latentwire.training.wire.evidence import Evidence


class AnswerCrossEntropy(Term):
    """Cross-entropy of every answer token, the end-of-sequence token included."""

    kind: Literal["answer_ce"] = "answer_ce"

    def loss(self, evidence: AnswerEvidence) -> Tensor:
        return summed_nats(evidence.lm, evidence.student)


class FirstTokens(Term):
    """Cross-entropy of the first `tokens` of every answer, scaled to weigh as much as all of them would.

    The first token is the hard one: a reader that gets it wrong has not understood, whatever it goes on to say.

    Attributes:
        tokens: How many tokens of every answer count.
    """

    kind: Literal["first_tokens"] = "first_tokens"
    tokens: int = Field(default=1, ge=1)

    def loss(self, evidence: AnswerEvidence) -> Tensor:
        chosen, scale = first_of(evidence, self.tokens)
        return summed_nats(evidence.lm, evidence.student, chosen) * scale


class GrowingTokens(Term):
    """`FirstTokens` whose number grows with the running accuracy of first answer tokens, and never shrinks.

    Attributes:
        tokens: How many count while that accuracy is below `low`.
        most: How many count from `high` on.
        low: Accuracy, 0 to 1, at which the number begins to grow. Snapshots keep the accuracy.
        high: Accuracy at which it has reached `most`.
    """

    kind: Literal["growing_tokens"] = "growing_tokens"
    tokens: int = Field(default=1, ge=1)
    most: int = Field(default=8, ge=1)
    low: float = Field(default=0.2, ge=0, le=1)
    high: float = Field(default=0.8, ge=0, le=1)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.most < self.tokens or self.high <= self.low:
            raise ValueError(
                f"growing_tokens: found {self.tokens} to {self.most} tokens between {self.low} and {self.high}, "
                "expected most >= tokens and high > low"
            )
        return self

    def tokens_at(self, accuracy: float) -> int:
        """How many tokens count at this running accuracy, the best so far."""
        risen = min(1.0, max(0.0, (accuracy - self.low) / (self.high - self.low)))
        return self.tokens + int((self.most - self.tokens) * risen)

    def loss(self, evidence: AnswerEvidence) -> Tensor:
        chosen, scale = first_of(evidence, self.tokens_at(evidence.best_accuracy))
        return summed_nats(evidence.lm, evidence.student, chosen) * scale


class Contrast(Term):
    """The answer must be likelier after its own latents than after another context's, by `margin` nats a token.

    Attributes:
        margin: By how many nats a token.
    """

    needs_message: ClassVar[bool] = True

    kind: Literal["contrast"] = "contrast"
    margin: float = Field(default=1.0, gt=0)

    def loss(self, evidence: Evidence) -> Tensor:
        own = token_nats(evidence.lm, evidence.student)
        return F.relu(self.margin + own - token_nats(evidence.lm, evidence.deranged)).sum()

"""Objectives of a wire's training. A new one is a class with a `kind`, and a line in `Objective`."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from latentwire.training.config import Settings
from latentwire.training.fit.evidence import Evidence


class Term(Settings):
    """One weighted term of the loss.

    weight: at the first step. final: at the last one, on a cosine between; None keeps the weight.
    """

    kind: str
    weight: float = Field(default=1.0, ge=0)
    final: float | None = Field(default=None, ge=0)

    @abstractmethod
    def loss(self, evidence: Evidence) -> Tensor:
        """A sum over the N answer tokens, or scaled as if it were one; in nats where it is a likelihood."""

    def weight_at(self, share: float) -> float:
        """The weight when `share` of the steps are done, 0 to 1."""
        if self.final is None:
            return self.weight
        return self.final + (self.weight - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class AnswerCrossEntropy(Term):
    """Cross-entropy of every answer token, the end-of-sequence token included."""

    kind: Literal["answer_ce"] = "answer_ce"

    def loss(self, evidence: Evidence) -> Tensor:
        return _token_losses(evidence, evidence.student.hidden).sum()


class FirstTokens(Term):
    """Cross-entropy of the first `tokens` of every answer, scaled to weigh as much as all of them would.

    The first token decides: a reader that gets it wrong has not understood, whatever it says on.
    """

    kind: Literal["first_tokens"] = "first_tokens"
    tokens: int = Field(default=1, ge=1)

    def loss(self, evidence: Evidence) -> Tensor:
        chosen = evidence.questions.place < self.tokens
        each = _token_losses(evidence, evidence.student.hidden)
        return each[chosen].sum() * (len(chosen) / max(1, int(chosen.sum())))


class Distill(Term):
    """KL from the same frozen reader reading the text, on the first `tokens` of every answer or on all of it.

    top: against the teacher's likeliest tokens only, all others counted as one.
    """

    kind: Literal["distill"] = "distill"
    tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, gt=0)

    def loss(self, evidence: Evidence) -> Tensor:
        lm = evidence.lm
        ours = (lm.head(evidence.student.hidden).float() / self.temperature).log_softmax(-1)
        with torch.no_grad():
            theirs = (lm.head(evidence.teacher.hidden).float() / self.temperature).log_softmax(-1)
        each = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1) * self.temperature**2
        if self.tokens is None:
            return each.sum()
        chosen = evidence.questions.place < self.tokens
        return each[chosen].sum() * (len(chosen) / max(1, int(chosen.sum())))


class Contrast(Term):
    """The answer must be likelier behind its own latents than behind another's, by `margin` nats a token."""

    kind: Literal["contrast"] = "contrast"
    margin: float = Field(default=1.0, gt=0)

    def loss(self, evidence: Evidence) -> Tensor:
        own = _token_losses(evidence, evidence.student.hidden)
        other = _token_losses(evidence, evidence.deranged.hidden)
        return F.relu(self.margin + own - other).sum()


class Scale(Term):
    """Keeps the size of latents near `target`: the squared log-ratio of their root mean square to it."""

    kind: Literal["scale"] = "scale"
    target: float = Field(default=1.0, gt=0)

    def loss(self, evidence: Evidence) -> Tensor:
        flat = evidence.message.flat()[evidence.message.valid].float()
        size = flat.square().mean(-1).clamp_min(1e-12).sqrt()
        return (size / self.target).log().square().mean() * len(evidence.student.labels)


Objective = Annotated[AnswerCrossEntropy | FirstTokens | Distill | Contrast | Scale, Field(discriminator="kind")]


def _token_losses(evidence: Evidence, hidden: Tensor) -> Tensor:
    return F.cross_entropy(evidence.lm.head(hidden).float(), evidence.student.labels, reduction="none")

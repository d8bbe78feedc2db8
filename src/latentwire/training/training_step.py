"""`Step`: one module whose forward is the whole training step.

Wire, reader and objectives run inside one forward, so that a distributed wrapper around it sees every parameter
exactly once: a head that is called apart from its backbone silently skips gradient averaging under DDP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.training.losses import summed_nats
from latentwire.training.objectives import Term
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.objectives.answer_evidence import AnswerEvidence


@dataclass(frozen=True, eq=False)
class Losses:
    """What one pass of a step came to.

    Attributes:
        total: The weighted sum over tokens to send backward.
        terms: Each objective's sum.
        labels: How many tokens were learned.
        first_right: How many first answer tokens were predicted right, on the device: reading it waits for it.
        firsts: How many first answer tokens there were.
        at: Where gradient norms of single objectives are taken.
        skipped: By objective, how often it did not fit into memory.
    """

    total: Tensor
    terms: dict[str, Tensor]
    labels: int
    first_right: Tensor
    firsts: int
    at: tuple[Tensor, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """An evaluation on held-out examples, or on a part of them.

    Attributes:
        nats: The sum over all answer tokens.
        labels: How many answer tokens there are.
        right: First answer tokens predicted right.
        firsts: All first answer tokens.
    """

    nats: float
    labels: int
    right: int
    firsts: int

    @classmethod
    def together(cls, parts: Iterable[Measured]) -> Measured:
        """Of all parts, added up in their order."""
        listed = list(parts)
        return cls(
            sum(part.nats for part in listed),
            sum(part.labels for part in listed),
            sum(part.right for part in listed),
            sum(part.firsts for part in listed),
        )

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.labels

    @property
    def accuracy(self) -> float:
        """The share of first answer tokens predicted right."""
        return self.right / max(1, self.firsts)


class Step(nn.Module):
    """What is trained and its objectives. A subclass says what a part of a step's data is evidence of.

    Args:
        objectives: The terms of the loss.
        adapting: Running numbers that scale them.
    """

    def __init__(self, objectives: Sequence[Term], adapting: Adapting) -> None:
        super().__init__()
        self._objectives, self.adapting = objectives, adapting

    @property
    def kinds(self) -> list[str]:
        """The objectives, by kind."""
        return [objective.kind for objective in self._objectives]

    def evidence(self, part: Any) -> Sequence[AnswerEvidence]:
        """What the objectives look at, one for each reader; nothing is computed yet."""
        raise NotImplementedError

    def forward(self, part: Any, share: float = 0.0) -> Losses:
        """All objectives on one part, when `share` of the training's steps (0 to 1) are done."""
        readers = self.evidence(part)
        terms: dict[str, Tensor] = {}
        skipped: dict[str, int] = {}
        total = torch.zeros((), device=next(self.parameters()).device)
        for objective in self._objectives:
            kind = objective.kind
            if objective.needs_message and readers[0].textual:
                terms[kind], skipped[kind] = torch.zeros_like(total), 0
                continue
            losses = [objective.loss(evidence) for evidence in readers]
            computed = [loss.to(total) for loss in losses if loss is not None]
            skipped[kind] = len(losses) - len(computed)
            terms[kind] = torch.stack(computed).sum() if computed else torch.zeros_like(total)
            total = total + objective.weight_at(share) * self.adapting.scale(kind) * terms[kind]
        # Before accuracies are taken without gradients: what is computed there first would have none.
        at = readers[0].at
        # How well a wire's readers read the text says nothing about the wire.
        right, firsts = (torch.zeros_like(total), 0) if readers[0].textual else first_right(readers)
        if not total.requires_grad:  # every objective was left out: a step that changes nothing
            total = total + 0 * torch.stack([tensor.sum().to(total) for tensor in at]).sum()
        labels = sum(evidence.labels for evidence in readers)
        return Losses(total, terms, labels, right, firsts, at, skipped)

    @torch.no_grad()
    def measure(self, parts: Iterable[Any]) -> list[Measured]:
        """For each held-out part, the cross-entropy of its answers and the accuracy of their first tokens."""
        measured = []
        for part in parts:
            readers = self.evidence(part)
            nats = sum(float(summed_nats(evidence.lm, evidence.student)) for evidence in readers)
            labels = sum(evidence.labels for evidence in readers)
            right, firsts = first_right(readers)
            measured.append(Measured(nats, labels, int(right), firsts))
        return measured


@torch.no_grad()
def first_right(readers: Sequence[AnswerEvidence]) -> tuple[Tensor, int]:
    """How many first answer tokens the readers predict right, and how many there are."""
    right = torch.zeros((), device=readers[0].student.hidden.device)
    firsts = 0
    for evidence in readers:
        first = evidence.first
        guessed: Tensor = evidence.lm.head(evidence.student.hidden[first]).argmax(-1)
        right += (guessed == evidence.student.labels[first]).sum().to(right)
        firsts += len(first)
    return right, firsts

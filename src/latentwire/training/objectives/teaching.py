"""Objectives that follow a teacher: the model as it was before training, reading the text causally."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.training import losses
from latentwire.training.objectives.term import Term, first_of

if TYPE_CHECKING:
    from latentwire.training.objectives.answer_evidence import AnswerEvidence


class Distill(Term):
    """KL from the teacher on the first `tokens` of every answer or on all of it (Hinton et al., 1503.02531).

    Attributes:
        tokens: How many tokens of every answer count; None takes all.
        temperature: Divides the logits of both; the loss is multiplied by its square.
        top: Compare with the teacher's K likeliest tokens only, all others counted as one; None takes all.
    """

    needs_teacher: ClassVar[bool] = True

    kind: Literal["distill"] = "distill"
    tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top: int | None = Field(default=None, ge=1)

    def loss(self, evidence: AnswerEvidence) -> Tensor | None:
        teacher = evidence.teacher
        if teacher is None:
            return None
        chosen, scale = first_of(evidence, self.tokens)
        ours, theirs = evidence.student.hidden, teacher.hidden
        if chosen is not None:
            ours, theirs = ours[chosen], theirs[chosen]
        return self.divergence(evidence.lm, ours, evidence.teacher_lm, theirs) * scale

    def divergence(self, lm: LM, hidden: Tensor, teacher: LM, teacher_hidden: Tensor) -> Tensor:
        """The divergence summed over tokens, for hidden states `(N, D)` of both, times the temperature squared."""
        heat, head, their_head = self.temperature, losses.Head.of(lm), losses.Head.of(teacher)
        if self.top is not None:
            ids, logprobs = _likeliest(teacher, teacher_hidden, self.top, heat)
            if head is not None and head.cap is None:
                return losses.top_kl(hidden / heat, head, ids, logprobs) * heat**2
            ours = (lm.head(hidden).float() / heat).log_softmax(-1)
            return _top_kl(ours, ids, logprobs) * heat**2
        if head is not None and their_head is not None:
            return losses.kl(hidden, head, teacher_hidden, their_head, temperature=heat)
        with torch.no_grad():
            aims = (teacher.head(teacher_hidden).float() / heat).log_softmax(-1)
        ours = (lm.head(hidden).float() / heat).log_softmax(-1)
        return F.kl_div(ours, aims, log_target=True, reduction="sum") * heat**2


class DistillHidden(Term):
    """The hidden states at the answer follow the teacher's (as CODI does, 2502.21074).

    The squared distance is divided by the teacher's own mean square, token by token, so that width and scale do
    not matter.

    Attributes:
        layers: After which layers, counted from 0, negative ones from the end; None for all.
        tokens: How many tokens of every answer count; None takes all.
    """

    needs_teacher: ClassVar[bool] = True

    kind: Literal["distill_hidden"] = "distill_hidden"
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    tokens: int | None = Field(default=None, ge=1)

    def taps(self, count: int) -> tuple[int, ...]:
        if self.layers is None:
            return tuple(range(count))
        for each in self.layers:
            if not -count <= each < count:
                raise UserError(f"objectives.layers: found {each}, expected one of the reader's {count} layers.")
        return tuple(each % count for each in self.layers)

    def loss(self, evidence: AnswerEvidence) -> Tensor | None:
        if evidence.teacher is None:
            return None
        chosen, scale = first_of(evidence, self.tokens)
        parts = []
        for layer in self.taps(evidence.depth):
            ours, theirs = evidence.student_states[layer].float(), evidence.teacher_states[layer].float()
            apart = (ours - theirs).square().mean(-1) / theirs.square().mean(-1).clamp_min(1e-12)
            parts.append((apart if chosen is None else apart[chosen]).sum())
        return torch.stack(parts).mean() * scale


@torch.no_grad()
def _likeliest(lm: LM, hidden: Tensor, top: int, heat: float) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities `(N, K)` of each token's likeliest; logits are made for a few tokens at a time."""
    size = max(1, losses.PART_BYTES // (4 * lm.embeddings().shape[0]))
    parts = [(lm.head(some).float() / heat).log_softmax(-1).topk(top) for some in hidden.split(size)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def _top_kl(ours: Tensor, ids: Tensor, theirs: Tensor) -> Tensor:
    """`losses.top_kl` of log-probabilities `(N, V)`."""
    share, inside = theirs.exp(), ours.gather(1, ids)
    rest = (1 - share.sum(-1)).clamp_min(0)
    left = ours.exp().scatter(1, ids, 0).sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (share * (theirs - inside)).sum() + (rest.xlogy(rest) - rest * left.log()).sum()

"""What every objective has: a kind, a weight with its schedule, what it needs, and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor

from latentwire.errors import UserError
from latentwire.kinds import Kind
from latentwire.training.schedules import annealed

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.training.objectives.answer_evidence import AnswerEvidence
    from latentwire.training.wire.evidence import Evidence
    from latentwire.wires.latent.latent_config import Layout
    from latentwire.wires.latent.modules import LatentModules


class Term(Kind, ABC):
    """One weighted term of the loss.

    Attributes:
        weight: At the first step.
        final: The weight at the last step, on a cosine between the two; None keeps the weight constant.
        auto: Also rescale the term so that its gradient norm (at a wire's message, or at the hidden states of a
            finetuning) equals that of the first objective.
    """

    needs_message: ClassVar[bool] = False
    """It looks at a wire's latents: no finetuning can use it, and steps in which readers read the text skip it."""
    needs_soft: ClassVar[bool] = False
    """It compares soft tokens with embeddings, so the reader must receive soft tokens."""
    needs_teacher: ClassVar[bool] = False
    """It follows the model as it was before training."""

    weight: float = Field(default=1.0, ge=0)
    final: float | None = Field(default=None, ge=0)
    auto: bool = False

    @abstractmethod
    def loss(self, evidence: Any) -> Tensor | None:
        """The term's value, a scalar to be divided by N, the number of answer tokens.

        Args:
            evidence: An `AnswerEvidence`; for a term with `needs_message` the `Evidence` of a wire's training.

        Returns:
            A sum over the N answer tokens, or a value scaled as if it were one, in nats where it is a likelihood.
            None where it did not fit into memory: such steps are counted.
        """

    def check(self, modules: LatentModules, readers: Mapping[str, LM]) -> None:
        """Raise a `UserError` if this term cannot be computed for the wire."""

    def weight_at(self, share: float) -> float:
        """The weight once `share` of the steps, 0 to 1, are done."""
        return annealed(self.weight, self.final, share)

    @property
    def layout(self) -> Layout | None:
        """The wire layout to choose where the wire's settings name none; None leaves it to others."""
        return None

    def taps(self, count: int) -> tuple[int, ...]:
        """The layers, of `count`, whose output hidden states it needs."""
        return ()


def refuse_draft(kind: str, modules: LatentModules) -> None:
    """Raise a `UserError` if the source writes a draft: its latents stand for no token of the text."""
    if modules.config.encoder.drafts_text:
        raise UserError(
            f"objectives: {kind} found draft: true, expected false: the latents of a draft stand for no token of "
            "the text."
        )


def first_of(evidence: AnswerEvidence, tokens: int | None) -> tuple[Tensor | None, float]:
    """Select the first `tokens` of every answer, and the factor that makes them weigh as much as all tokens.

    The factor is taken over the whole step, so that a step split among passes and processes has the same loss.

    Returns:
        A `(N,)` bool mask, or None for all tokens, and the factor.
    """
    if tokens is None:
        return None, 1.0
    lengths = evidence.lengths
    return evidence.place < tokens, sum(lengths) / max(1, sum(min(length, tokens) for length in lengths))


def soft_tokens(evidence: Evidence) -> Tensor:
    """The reader's soft tokens `(B, M, D)` in float32. Raises `UserError` where it receives none."""
    soft = evidence.delivered.content
    if soft is None:
        raise UserError(
            f"objectives: found one that compares soft tokens with embeddings, expected an adapter of "
            f"{evidence.reader} that gives embeddings."
        )
    return soft.float()

"""What every objective of a wire's training has: a kind, a weight with its schedule, and a loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from latentwire.errors import UserError
from latentwire.training import losses
from latentwire.training.schedules import annealed
from latentwire.training.settings import Settings
from latentwire.wires.latent.drafts import Drafting

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.lm.prefix import Forced
    from latentwire.training.wire.evidence import Evidence
    from latentwire.wires.latent.latent_config import Layout
    from latentwire.wires.latent.modules import LatentModules


class Term(Settings):
    """One weighted term of the loss.

    weight: at the first step. final: at the last one, on a cosine between; None keeps the weight.
    auto: scaled besides, so that its gradient with respect to the message is as large as the first objective's.
    """

    needs_message: ClassVar[bool] = False
    """It says nothing in a step in which the reader reads the text."""
    needs_soft: ClassVar[bool] = False
    """It compares soft tokens with embeddings: the reader must get such."""

    kind: str
    weight: float = Field(default=1.0, ge=0)
    final: float | None = Field(default=None, ge=0)
    auto: bool = False

    @abstractmethod
    def loss(self, evidence: Evidence) -> Tensor | None:
        """A sum over the N answer tokens, or scaled as if it were one; in nats where it is a likelihood.

        None where it could not be computed for lack of memory: such steps are counted.
        """

    def check(self, modules: LatentModules, readers: Mapping[str, LM]) -> None:
        """Raise a `UserError` if the wire is none that it can say anything about."""

    def weight_at(self, share: float) -> float:
        """The weight when `share` of the steps are done, 0 to 1."""
        return annealed(self.weight, self.final, share)

    @property
    def layout(self) -> Layout | None:
        """The layout that is chosen for it where the wire sets none; None leaves it to others."""
        return None

    def taps(self, count: int) -> tuple[int, ...]:
        """The layers, of `count`, behind which it needs the reader's hidden states."""
        return ()


def summed_nats(lm: LM, forced: Forced, chosen: Tensor | None = None) -> Tensor:
    """Summed cross-entropy of the N labels, or of the chosen ones, `(N,)` bool."""
    hidden, labels = forced.hidden, forced.labels
    if chosen is not None:
        hidden, labels = hidden[chosen], labels[chosen]
    head = losses.Head.of(lm)
    if head is not None:
        return losses.cross_entropy(hidden, head, labels)
    return F.cross_entropy(lm.head(hidden).float(), labels, reduction="sum")


def token_nats(lm: LM, forced: Forced) -> Tensor:
    """Cross-entropy of each label, `(N,)`."""
    return F.cross_entropy(lm.head(forced.hidden).float(), forced.labels, reduction="none")


def refuse_draft(kind: str, modules: LatentModules) -> None:
    """Raise a `UserError` where the source writes a draft: its latents stand for no token of the text."""
    encoder = modules.config.encoder
    if isinstance(encoder, Drafting) and encoder.draft:
        raise UserError(
            f"objectives: {kind} found draft: true, expected false: a draft stands for none of the text."
        )


def first_of(evidence: Evidence, tokens: int | None) -> tuple[Tensor | None, float]:
    """Which of the N answer tokens are among the first `tokens` of theirs, and all by how many they are.

    Scaled by the latter a few tokens weigh as much as all would. It is the whole step's, so that a step divided
    among passes and processes has the same loss.
    """
    if tokens is None:
        return None, 1.0
    lengths = evidence.lengths
    return evidence.questions.place < tokens, sum(lengths) / max(1, sum(min(each, tokens) for each in lengths))


def soft_tokens(evidence: Evidence) -> Tensor:
    """The reader's soft tokens `(B, M, D)` in float32. Raises `UserError` where it gets none."""
    soft = evidence.delivered.content
    if soft is None:
        raise UserError(
            f"objectives: found one that compares soft tokens with embeddings, expected an adapter of "
            f"{evidence.reader} that gives embeddings."
        )
    return soft.float()

"""Objectives on the context's own tokens, read after its latents: they need neither questions nor labels.

The continuation of a context has no objective of its own: `TextData` makes it the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from latentwire.lm.scoring.questions import IGNORE, Questions
from latentwire.training.losses import summed_nats
from latentwire.training.objectives.term import Term

if TYPE_CHECKING:
    from latentwire.training.wire.evidence import Evidence


class Reconstruct(Term):
    """The reader writes the context out after its latents (ICAE, 2307.06945; ARC-Encoder mixes in 20 %).

    Attributes:
        cue: The text that asks for it.
        limit: How many tokens of a context, from its beginning; None takes all.
    """

    needs_message: ClassVar[bool] = True

    kind: Literal["reconstruct"] = "reconstruct"
    cue: str = Field(default="\nText:", min_length=1)
    limit: int | None = Field(default=None, ge=1)

    def loss(self, evidence: Evidence) -> Tensor:
        return _mean_nats(evidence, _reproduced(evidence, self.cue, self.limit))


class Gist(Term):
    """The reader fills in masked tokens of the context from the latents and the tokens before them.

    Attributes:
        share: The share of tokens that are masked, drawn anew in every step; each becomes an end-of-sequence
            token.
        cue: The text that asks for it.
        limit: How many tokens of a context, from its beginning; None takes all.
    """

    needs_message: ClassVar[bool] = True

    kind: Literal["gist"] = "gist"
    share: float = Field(default=0.3, gt=0, le=1)
    cue: str = Field(default="\nText:", min_length=1)
    limit: int | None = Field(default=None, ge=1)

    def loss(self, evidence: Evidence) -> Tensor:
        whole = _reproduced(evidence, self.cue, self.limit)
        rows, width = whole.ids.shape
        draws = [evidence.draw("gist", row) for row in range(rows)]
        drawn = [[draw.random() for _ in range(width)] for draw in draws]
        masked = (torch.tensor(drawn, device=whole.ids.device) < self.share) & (whole.places >= 0)
        hidden = min(evidence.lm.eos_ids, default=0)
        asked = whole.relabelled(torch.where(masked, hidden, whole.ids), torch.where(masked, whole.labels, IGNORE))
        return _mean_nats(evidence, asked)


def _reproduced(evidence: Evidence, cue: str, limit: int | None) -> Questions:
    """Each context's tokens as the answer to the cue."""
    lm = evidence.lm
    asked = list(lm.tokenizer(cue, add_special_tokens=False)["input_ids"])
    told = lm.tokenizer([f" {each}" for each in evidence.contexts], add_special_tokens=False)["input_ids"]
    return Questions.of([[(asked, list(ids)[:limit])] for ids in told], lm.device)


def _mean_nats(evidence: Evidence, asked: Questions) -> Tensor:
    found = asked.forced(evidence.delivered, evidence.lm)
    return summed_nats(evidence.lm, found) * (evidence.labels / max(1, len(found.labels)))

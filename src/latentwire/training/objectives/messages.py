"""Objectives on the message itself: its size, and how close soft tokens are to the reader's embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from latentwire.training.objectives.term import Term, refuse_draft, soft_tokens

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.training.wire.evidence import Evidence
    from latentwire.wires.latent.modules import LatentModules


class Scale(Term):
    """Keeps the root mean square of latents near `target`: the squared logarithm of their ratio.

    Attributes:
        target: The root mean square to stay near.
    """

    needs_message: ClassVar[bool] = True

    kind: Literal["scale"] = "scale"
    target: float = Field(default=1.0, gt=0)

    def loss(self, evidence: Evidence) -> Tensor:
        flat = evidence.message.flat()[evidence.message.valid].float()
        size = flat.square().mean(-1).clamp_min(1e-12).sqrt()
        return (size / self.target).log().square().mean() * evidence.labels


class Align(Term):
    """Each soft token resembles the mean embedding of the text tokens that it stands for.

    Attributes:
        measure: `cosine`, one minus the cosine, or `mse`, the squared distance divided by the embeddings' mean
            square.
    """

    needs_message: ClassVar[bool] = True
    needs_soft: ClassVar[bool] = True

    kind: Literal["align"] = "align"
    measure: Literal["cosine", "mse"] = "cosine"

    def check(self, modules: LatentModules, readers: Mapping[str, LM]) -> None:
        refuse_draft(self.kind, modules)

    def loss(self, evidence: Evidence) -> Tensor:
        soft = soft_tokens(evidence)
        spans = evidence.spans
        share = spans / spans.sum(-1, keepdim=True).clamp_min(1)
        aims = share @ evidence.text_embeddings
        stands = spans.any(-1)
        if self.measure == "cosine":
            apart = 1 - F.cosine_similarity(soft, aims, dim=-1)
        else:
            apart = (soft - aims).square().mean(-1) / evidence.table[2]
        return apart[stands].mean() * evidence.labels


class Manifold(Term):
    """Soft tokens have, channel by channel, the mean and the standard deviation of the reader's embeddings.

    Both gaps are in units of the embeddings' standard deviation; off this manifold a frozen reader stops at once.
    """

    needs_message: ClassVar[bool] = True
    needs_soft: ClassVar[bool] = True

    kind: Literal["manifold"] = "manifold"

    def loss(self, evidence: Evidence) -> Tensor:
        soft = soft_tokens(evidence)[evidence.soft_valid]
        mean, spread, _ = evidence.table
        off = ((soft.mean(0) - mean) / spread).square().mean()
        # The variance has a floor: the slope of its root is unbounded where all soft tokens are equal.
        wide = ((soft.var(0, unbiased=False) + 1e-12).sqrt() / spread - 1).square().mean()
        return (off + wide) * evidence.labels


class InfoNce(Term):
    """Soft tokens, on average, resemble their own text more than the batch's others (van den Oord, 1807.03748).

    Texts of the same group are not taken as negatives.

    Attributes:
        temperature: What similarities are divided by; a lower one asks for a clearer winner.
    """

    needs_message: ClassVar[bool] = True
    needs_soft: ClassVar[bool] = True

    kind: Literal["info_nce"] = "info_nce"
    temperature: float = Field(default=0.07, gt=0)

    def loss(self, evidence: Evidence) -> Tensor:
        valid = evidence.soft_valid[..., None]
        soft = (soft_tokens(evidence) * valid).sum(1) / valid.sum(1).clamp_min(1)
        known = evidence.text_valid[..., None]
        text = (evidence.text_embeddings * known).sum(1) / known.sum(1).clamp_min(1)
        alike = F.normalize(soft, dim=-1) @ F.normalize(text, dim=-1).T / self.temperature
        names = {name: number for number, name in enumerate(evidence.groups)}
        of = torch.tensor([names[name] for name in evidence.groups], device=alike.device)
        own = torch.eye(len(of), dtype=torch.bool, device=alike.device)
        alike = alike.masked_fill((of[:, None] == of) & ~own, float("-inf"))
        return F.cross_entropy(alike, torch.arange(len(of), device=of.device)) * evidence.labels

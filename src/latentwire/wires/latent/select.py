"""Which columns of an encoding become latents: every n-th, the mean of every n, or slots after the text."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class _Select(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def every_column(self) -> bool:
        """Whether each column becomes a latent of its own."""
        return False


class _Groups(_Select):
    """One latent for every `ratio` columns; the last one may have fewer columns.

    Attributes:
        ratio: columns for each latent.
        keep_first: the first column is a latent of its own: readers attend to it whatever it holds (attention
            sink).
        slots: always 0: nothing learned stands after the text.
    """

    kind: Literal["anchors", "mean"]
    ratio: int = Field(default=4, ge=1)
    keep_first: bool = True
    slots: Literal[0] = 0

    @property
    def every_column(self) -> bool:
        return self.ratio == 1

    def _groups(self, width: int) -> tuple[int, int]:
        """How many first columns stand alone (0 or 1), and how many groups `width` columns have."""
        first = int(self.keep_first and self.ratio > 1)
        return first, (width - first + self.ratio - 1) // self.ratio


class Anchors(_Groups):
    """The last of every `ratio` columns, which has read the others (SAC, 2510.08907)."""

    kind: Literal["anchors"] = "anchors"

    def weights(self, valid: Tensor) -> Tensor:
        """Each latent as a mixture of columns.

        Args:
            valid: `(B, T)`, columns that are no padding, which is on the right.

        Returns:
            `(B, M, T)`; the row of a latent that a context does not have is zero.
        """
        length = valid.sum(1)
        first, groups = self._groups(valid.shape[1])
        ends = (torch.arange(1, groups + 1, device=valid.device) * self.ratio + first)[None].expand(len(valid), -1)
        starts = ends - self.ratio
        # A last group that is not full ends where the context ends.
        at = torch.minimum(ends, length[:, None]) - 1
        chosen = torch.nn.functional.one_hot(at.clamp_min(0), valid.shape[1]).float()
        chosen = chosen * (starts < length[:, None])[..., None]
        if not first:
            return chosen
        sink = chosen.new_zeros(len(valid), 1, valid.shape[1])
        sink[:, :, 0] = (length > 0).float()[:, None]
        return torch.cat([sink, chosen], 1)


class Mean(_Groups):
    """The mean of every `ratio` columns (ARC-Encoder, 2510.20535; Feldman and Artzi, 2510.20797)."""

    kind: Literal["mean"] = "mean"

    def weights(self, valid: Tensor) -> Tensor:
        """`(B, M, T)`; see `Anchors.weights`."""
        first, groups = self._groups(valid.shape[1])
        column = torch.arange(valid.shape[1], device=valid.device)
        group = (column - first).div(self.ratio, rounding_mode="floor")
        if first:
            group[0] = groups
        member = torch.nn.functional.one_hot(group, groups + first).float().T[None] * valid[:, None]
        return member / member.sum(-1, keepdim=True).clamp_min(1)


class LearnedSlots(_Select):
    """`slots` learned tokens after the text, the same number for every length (ICAE; 500xCompressor).

    Attributes:
        slots: how many latents, whatever the context's length.
    """

    kind: Literal["slots"] = "slots"
    slots: int = Field(default=32, ge=1)

    def weights(self, valid: Tensor) -> Tensor:
        """`(B, M, T)`; the slots are the last `slots` columns."""
        width = valid.shape[1]
        eye = torch.eye(width, device=valid.device)[width - self.slots :]
        return eye[None].expand(len(valid), -1, -1)


Select = Annotated[Anchors | Mean | LearnedSlots, Field(discriminator="kind")]


def spread(length: Tensor, count: int) -> Tensor:
    """Positions `(B, count)`, evenly inside sources of `length` `(B,)` tokens (EPL, 2409.14364)."""
    halves = 2 * torch.arange(count, device=length.device) + 1
    return (halves * length[:, None]).div(2 * count, rounding_mode="floor")

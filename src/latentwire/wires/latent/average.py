"""`Average`: the average latents of a sample of contexts, which say what all messages have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.wires.latent.message import Latents

_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Average:
    """Sums over a sample of contexts, place by place: of all first latents, of all second ones, and so on.

    Each place has a sum of its own because the first latents (an attention sink) are unlike the others.

    Attributes:
        contexts: the sample.
        sums: one for each tensor of `Latents`, `(M, D)` or `(H, M, D)`.
        counts: `(M,)`, how many contexts have a latent in each place.
    """

    contexts: frozenset[str]
    sums: tuple[Tensor, ...]
    counts: Tensor

    @classmethod
    def of(cls, encode: Callable[[Sequence[str]], Latents], contexts: Sequence[str]) -> Average:
        """The average of the latents that `encode` makes of `contexts`.

        Raises:
            UserError: fewer than two different contexts, so that a context would have no other to average.
        """
        sample = list(dict.fromkeys(contexts))
        if len(sample) < 2:
            raise UserError(f"wire: mean averages other contexts, found {len(sample)}, expected 2 or more.")
        whole: Average | None = None
        for start in range(0, len(sample), _AT_ONCE):
            part = encode(sample[start : start + _AT_ONCE])
            sums = tuple((tensor * _mask(part.valid, tensor)).sum(0) for tensor in part.tensors)
            counts = part.valid.sum(0)
            if whole is not None:
                width = max(len(counts), len(whole.counts))
                sums = tuple(_wide(a, width) + _wide(b, width) for a, b in zip(sums, whole.sums, strict=True))
                counts = _wide(counts[:, None], width)[:, 0] + _wide(whole.counts[:, None], width)[:, 0]
            whole = cls(frozenset(sample), sums, counts)
        assert whole is not None
        return whole

    def instead_of(self, latents: Latents, contexts: Sequence[str], out: Latents) -> Latents:
        """Control: as many latents, each the average of the latents in its place in the sample's other contexts.

        Places that no other context reaches hold the last average.

        Args:
            latents: of B contexts.
            contexts: B contexts that are left out of the averages, where they are in the sample.
            out: the latents of those.
        """
        width = max(len(self.counts), out.valid.shape[1])
        own = torch.tensor([[context in self.contexts] for context in contexts], device=out.valid.device)
        mine = torch.nn.functional.pad(out.valid & own, (0, width - out.valid.shape[1]))
        counts = _wide(self.counts[:, None], width)[:, 0] - mine.long()
        last = (counts > 0).sum(1, keepdim=True) - 1
        at = torch.minimum(torch.arange(latents.valid.shape[1], device=last.device), last)
        averages = []
        for total, each, left_out in zip(self.sums, latents.tensors, out.tensors, strict=True):
            left = _wide(total, width) - _wide(left_out, width) * _mask(mine, left_out)
            mean = left / _mask(counts.clamp_min(1), each)
            averages.append(torch.take_along_dim(mean, _mask(at, each), -2).to(each))
        return latents.with_tensors(tuple(averages))


def _mask(of: Tensor, like: Tensor) -> Tensor:
    """`(B, M)` in the shape of `(B, M, D)` or `(B, H, M, D)`."""
    return of[..., None] if like.ndim == 3 else of[:, None, :, None]


def _wide(each: Tensor, width: int) -> Tensor:
    """With zeros appended to the last dimension but one, up to `width`."""
    return torch.nn.functional.pad(each, (0, 0, 0, width - each.shape[-2]))

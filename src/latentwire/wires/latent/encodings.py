"""`Encodings`: latents by context, so that the arms and questions of one wire encode each context once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latentwire.wires.latent.message import Latents

LIMIT = 1 << 30
"""Bytes of latents that are kept; contexts beyond it are encoded again for each arm."""


@dataclass(frozen=True, eq=False)
class _Row:
    """Latents of one context, without padding. flat: `(M, width)`, all tensors of a latent in one vector."""

    flat: Tensor
    valid: Tensor
    positions: Tensor
    length: Tensor


class Encodings:
    """Latents of contexts as they were encoded. A context's latents never depend on the others of its batch."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._bytes = 0
        self._like: Latents | None = None

    def of(self, contexts: Sequence[str], encode: Callable[[Sequence[str]], Latents]) -> Latents:
        """The latents of B contexts.

        Args:
            encode: called for those that are not known yet, each once.
        """
        new = [context for context in dict.fromkeys(contexts) if context not in self._rows]
        fresh: dict[str, _Row] = {}
        if new:
            made = encode(new)
            if not _one_vector(made):
                return made if new == list(contexts) else encode(contexts)
            fresh = self._kept(new, made)
            if new == list(contexts):
                return made
        return self._together([fresh.get(context) or self._rows[context] for context in contexts])

    def _kept(self, contexts: Sequence[str], made: Latents) -> dict[str, _Row]:
        """The rows of new latents, which stay as long as there is room."""
        flat, rows = made.flat(), {}
        places = torch.arange(1, made.valid.shape[1] + 1, device=made.valid.device)
        ends = (made.valid * places).amax(1).tolist()
        self._like = made.with_tensors(tuple(each[:0] for each in made.tensors))
        for at, (context, end) in enumerate(zip(contexts, ends, strict=True)):
            row = _Row(
                flat[at, :end].clone(),
                made.valid[at, :end].clone(),
                made.positions[at, :end].clone(),
                made.length[at],
            )
            rows[context] = row
            size = row.flat.numel() * row.flat.element_size()
            if self._bytes + size <= LIMIT:
                self._rows[context] = row
                self._bytes += size
        return rows

    def _together(self, rows: Sequence[_Row]) -> Latents:
        assert self._like is not None
        flat = pad_sequence([row.flat for row in rows], batch_first=True)
        tensors, start = [], 0
        for each in self._like.tensors:
            heads, width = (1, each.shape[-1]) if each.ndim == 3 else (each.shape[1], each.shape[3])
            part = flat[..., start : start + heads * width]
            tensors.append(part if each.ndim == 3 else part.unflatten(-1, (heads, width)).transpose(1, 2))
            start += heads * width
        like = replace(
            self._like,
            valid=pad_sequence([row.valid for row in rows], batch_first=True),
            positions=pad_sequence([row.positions for row in rows], batch_first=True),
            length=torch.stack([row.length for row in rows]),
        )
        return like.with_tensors(tuple(tensors))


def _one_vector(latents: Latents) -> bool:
    """Whether the numbers of a latent can stand in one vector: one device, one dtype, as many in each head."""
    first = latents.tensors[0]
    return not latents.heads and all(
        (each.device, each.dtype) == (first.device, first.dtype) for each in latents.tensors
    )

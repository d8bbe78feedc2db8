"""`Latents`: what a latent wire sends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentwire.wires.wire import Message

BYTES_PER_NUMBER = 2
"""Latents cross in bfloat16 unless they are quantized."""


@dataclass(frozen=True, eq=False)
class Latents(Message):
    """M latents a context, for B contexts: vectors, or keys and values of every layer, or both.

    vectors: `(B, M, Z)`. keys (not rotated), values: one `(B, H, M, D)` a layer. valid: `(B, M)`. positions:
    `(B, M)`, where in the source each stands, in its tokens. length: `(B,)`, the source's tokens. bits: how
    many a number takes on the wire.
    """

    valid: Tensor
    positions: Tensor
    length: Tensor
    vectors: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    bits: float = 8 * BYTES_PER_NUMBER

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*(() if self.vectors is None else (self.vectors,)), *self.keys, *self.values)

    def flat(self) -> Tensor:
        """`(B, M, width)`: everything of a latent in one vector."""
        parts = [each if each.ndim == 3 else each.transpose(1, 2).flatten(2) for each in self.tensors]
        return torch.cat(parts, -1)

    def nbytes(self) -> list[int]:
        """Bytes of the numbers that cross; positions follow from their count."""
        numbers = sum(_heads(each) * each.shape[-1] for each in self.tensors)
        return [int(count * numbers * self.bits / 8) for count in self.valid.sum(1).tolist()]

    def select(self, rows: Tensor) -> Latents:
        """The latents with these row indices, in this order."""
        return replace(
            self,
            valid=self.valid[rows],
            positions=self.positions[rows],
            length=self.length[rows],
            vectors=None if self.vectors is None else self.vectors[rows],
            keys=tuple(each[rows] for each in self.keys),
            values=tuple(each[rows] for each in self.values),
        )

    def to(self, device: torch.device) -> Latents:
        """The same latents on a device."""
        return replace(
            self.with_tensors(tuple(each.to(device) for each in self.tensors)),
            valid=self.valid.to(device),
            positions=self.positions.to(device),
            length=self.length.to(device),
        )

    def with_tensors(self, tensors: tuple[Tensor, ...], bits: float | None = None) -> Latents:
        """The same latents with other numbers, in the order of `tensors`."""
        found = iter(tensors)
        vectors = None if self.vectors is None else next(found)
        keys = tuple(next(found) for _ in self.keys)
        values = tuple(next(found) for _ in self.values)
        return replace(self, vectors=vectors, keys=keys, values=values, bits=bits or self.bits)


def _heads(each: Tensor) -> int:
    """How many vectors a latent has in `(B, M, D)` or `(B, H, M, D)`."""
    return each.shape[1] if each.ndim == 4 else 1


def zero(latents: Latents) -> Latents:
    """Control: as many latents, every number zero."""
    return latents.with_tensors(tuple(torch.zeros_like(each) for each in latents.tensors))


def quantize(latents: Latents, bits: int) -> Latents:
    """Numbers rounded to `bits` bits, symmetrically, with one bf16 scale a latent and tensor (a head's, for keys).

    `bits` of the result counts the scales.
    """
    top = 2 ** (bits - 1) - 1
    rounded, numbers, scales = [], 0, 0
    for each in latents.tensors:
        scale = (each.abs().amax(-1, keepdim=True) / top).to(torch.bfloat16).to(each.dtype).clamp_min(1e-12)
        rounded.append((each / scale).round().clamp(-top, top) * scale)
        numbers, scales = numbers + _heads(each) * each.shape[-1], scales + _heads(each)
    return latents.with_tensors(tuple(rounded), bits=bits + 16 * scales / numbers)

"""`Latents`: what a latent wire sends, and two controls of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from latentwire.wires.wire import Message

BYTES_PER_NUMBER = 2
"""Latents cross in bfloat16, unless they are quantized."""


@dataclass(frozen=True, eq=False)
class Latents(Message):
    """M latents for each of B contexts: vectors, or keys and values of every layer, or both.

    Attributes:
        valid: `(B, M)`, which latents a context has.
        positions: `(B, M)`, where in the source each latent stands, in the source's tokens.
        length: `(B,)`, how many tokens the source has.
        vectors: `(B, M, Z)`, or None.
        keys: one `(B, H, M, D)` a layer, not rotated, or none.
        values: the same for values.
        bits: how many bits a number takes on the wire.
        heads: one `(B, H, M)` a layer, which latents each head has, where heads keep different numbers of them;
            empty where every head has all.
    """

    valid: Tensor
    positions: Tensor
    length: Tensor
    vectors: Tensor | None = None
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    bits: float = 8 * BYTES_PER_NUMBER
    heads: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*(() if self.vectors is None else (self.vectors,)), *self.keys, *self.values)

    def flat(self) -> Tensor:
        """`(B, M, width)`: all tensors of a latent in one vector."""
        parts = [each if each.ndim == 3 else each.transpose(1, 2).flatten(2) for each in self.tensors]
        return torch.cat(parts, -1)

    def nbytes(self) -> list[int]:
        """Bytes of the numbers that cross, for each context; positions follow from their count."""
        if self.heads:
            widths = [key.shape[-1] + value.shape[-1] for key, value in zip(self.keys, self.values, strict=True)]
            counts = [kept.sum((1, 2)) * width for kept, width in zip(self.heads, widths, strict=True)]
            return [int(numbers * self.bits / 8) for numbers in torch.stack(counts).sum(0).tolist()]
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
            heads=tuple(each[rows] for each in self.heads),
        )

    def beside(self, others: Latents) -> Latents:
        """These and other latents in one batch, one after the other, padded to the same number."""
        width = max(self.valid.shape[1], others.valid.shape[1])

        def joined(one: Tensor, other: Tensor, axis: int) -> Tensor:
            """Pads the axis of the latents, counted from the end, and joins the batches."""
            padded = [pad(each, (0, 0) * (-axis - 1) + (0, width - each.shape[axis])) for each in (one, other)]
            return torch.cat(padded)

        vectors = None
        if self.vectors is not None and others.vectors is not None:
            vectors = joined(self.vectors, others.vectors, -2)
        return replace(
            self,
            valid=joined(self.valid, others.valid, -1),
            positions=joined(self.positions, others.positions, -1),
            length=torch.cat([self.length, others.length]),
            vectors=vectors,
            keys=tuple(joined(a, b, -2) for a, b in zip(self.keys, others.keys, strict=True)),
            values=tuple(joined(a, b, -2) for a, b in zip(self.values, others.values, strict=True)),
            heads=tuple(joined(a, b, -1) for a, b in zip(self.heads, others.heads, strict=True)),
        )

    def to(self, device: torch.device) -> Latents:
        """The same latents on a device."""
        return replace(
            self.with_tensors(tuple(each.to(device) for each in self.tensors)),
            valid=self.valid.to(device),
            positions=self.positions.to(device),
            length=self.length.to(device),
            heads=tuple(each.to(device) for each in self.heads),
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
    """Control: as many latents, all numbers zero."""
    return latents.with_tensors(tuple(torch.zeros_like(each) for each in latents.tensors))


def quantize(latents: Latents, bits: int) -> Latents:
    """Latents rounded symmetrically to `bits` bits, with one bfloat16 scale for each vector of a latent.

    `bits` of the result counts the scales too.
    """
    top = 2 ** (bits - 1) - 1
    rounded, numbers, scales = [], 0, 0
    for each in latents.tensors:
        scale = (each.abs().amax(-1, keepdim=True) / top).to(torch.bfloat16).to(each.dtype).clamp_min(1e-12)
        rounded.append((each / scale).round().clamp(-top, top) * scale)
        numbers, scales = numbers + _heads(each) * each.shape[-1], scales + _heads(each)
    return latents.with_tensors(tuple(rounded), bits=bits + 16 * scales / numbers)

"""Weights where they stay: at addresses that an allocator gives, every value a finite number.

On a CPU, weights in the dtype of their file are views into that file, which is not read yet, mostly at odd
addresses: there a matrix product takes another kernel, which is slower and rounds otherwise. Several threads read
them into memory, a chunk at a time, and look at a chunk while it is in a core's cache: the file is read once, and
so is memory written.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm.loading.mapped_files import Files, files

ALIGNMENT = 64
CHUNK = 2**20
"""Bytes that a thread copies before it looks at them."""
PIECE = 2**26
"""Bytes that a thread takes at a time."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class _Piece:
    """A stretch of a tensor, as integers.

    target: where to copy it; None if it stays. looked_at: the dtype as which it is looked at; None if it is not.
    file: descriptor and offset of the file that holds it; None where it is no file's.
    """

    name: str
    source: np.ndarray
    target: np.ndarray | None
    looked_at: torch.dtype | None
    file: tuple[int, int] | None


def align(model: PreTrainedModel, spec: str) -> None:
    """Copy what is not aligned; tied tensors stay tied, and of what was copied nothing is held twice.

    Raises:
        UserError: a parameter holds a value that is not a finite number; names the first.
    """
    finite: dict[str, bool] = {}
    parameters = dict(model.named_parameters())
    copies: list[tuple[Tensor, Tensor]] = []
    with files() as mapped, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        pieces: list[_Piece] = []
        for name, tensor in [*parameters.items(), *model.named_buffers()]:
            look = name in parameters
            if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.itemsize == 1):
                finite[name] = not look or _finite(tensor)
            if tensor.device.type == "cpu":
                if not tensor.is_contiguous():
                    tensor.data = tensor.clone(memory_format=torch.contiguous_format)
                target = None if tensor.data_ptr() % ALIGNMENT == 0 else torch.empty_like(tensor)
                if target is not None:
                    copies.append((tensor, target))
                looked = tensor.dtype if look and tensor.dtype.is_floating_point and name not in finite else None
                pieces += _cut(name, tensor, target, looked, mapped)
        for piece, good in zip(pieces, pool.map(_bring, pieces), strict=True):
            finite[piece.name] = finite.get(piece.name, True) and good
    for name in parameters:
        if not finite.get(name, True):
            raise UserError(f"weights: {name} of {spec} holds NaN or infinity, expected finite numbers.")
    for tensor, target in copies:
        tensor.data = target


def _cut(
    name: str, tensor: Tensor, target: Tensor | None, looked_at: torch.dtype | None, mapped: Files
) -> list[_Piece]:
    if target is None and looked_at is None:
        return []
    source, step = _integers(tensor), PIECE // tensor.itemsize
    into = None if target is None else _integers(target)
    pieces = []
    for at in range(0, len(source), step):
        some = source[at : at + step]
        file = None if into is None else mapped.at(some.ctypes.data, some.nbytes)
        pieces.append(_Piece(name, some, None if into is None else into[at : at + step], looked_at, file))
    return pieces


def _integers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().reshape(-1).view(_BITS[tensor.itemsize]).numpy()


def _bring(piece: _Piece) -> bool:
    """Copy a piece where it has a target; whether its values are finite, true where they are not looked at."""
    # NumPy and not PyTorch: its operations are of one thread, which is this one, and let others run meanwhile.
    step = CHUNK // piece.source.itemsize
    for at in range(0, len(piece.source), step):
        chunk = piece.source[at : at + step]
        if piece.target is not None:
            into = piece.target[at : at + step]
            if piece.file is None or not _read(into, piece.file[0], piece.file[1] + at * into.itemsize):
                into[...] = chunk
            chunk = into
        if piece.looked_at is not None and not _finite_bits(chunk, piece.looked_at):
            return False
    return True


def _read(into: np.ndarray, descriptor: int, offset: int) -> bool:
    """Whether all of `into` could be read from a file."""
    return os.preadv(descriptor, [into.data], offset) == into.nbytes


def _finite_bits(bits: np.ndarray, dtype: torch.dtype) -> bool:
    # As integers, infinity and every NaN are the greatest of their sign: signed for +, unsigned for -.
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(_BITS[dtype.itemsize]))
    unsigned = bits.view(f"u{bits.itemsize}")
    return bool(bits.max() < infinity and unsigned.max() < infinity + (1 << (8 * bits.itemsize - 1)))


def _finite(tensor: Tensor) -> bool:
    if not tensor.numel() or tensor.dtype.itemsize == 1:
        return bool(torch.isfinite(tensor).all())
    # NaN is the least and the greatest of whatever it stands among: no second tensor is made.
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))

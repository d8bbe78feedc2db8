"""Copies weights that are mapped from a file into aligned memory, and checks that every value is finite.

On a CPU, weights in the dtype of their file are views into that file. Nothing of it has been read yet, and most
views start at unaligned addresses, where a matrix product takes another kernel: slower, and rounding
differently. Several threads read the weights into memory chunk by chunk and check each chunk while it is in a
core's cache, so that the file is read once and memory is written once.
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
"""Bytes; what PyTorch's own allocator gives."""
CHUNK = 2**20
"""Bytes that a thread copies before it checks them."""
PIECE = 2**26
"""Bytes that a thread takes at a time."""
SMALL = 2**16
"""Bytes below which memory is copied without asking which file it is."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class _Piece:
    """A part of a tensor, seen as integers.

    Attributes:
        name: of the tensor.
        source: the part as it is now.
        target: where to copy it, None if it stays.
        dtype: of the values to check, None if they are not checked here.
        file: descriptor and offset of the file that holds it, None where it is not a file's.
    """

    name: str
    source: np.ndarray
    target: np.ndarray | None
    dtype: torch.dtype | None
    file: tuple[int, int] | None


def align(model: PreTrainedModel, spec: str) -> None:
    """Copy the weights that are not aligned, and check all of them. Tied tensors stay tied.

    Args:
        model: its tensors on the CPU are moved in memory; those on other devices are checked only.
        spec: the model's name, for the error message.

    Raises:
        UserError: a parameter holds a value that is not finite; the sentence names the first.
    """
    finite: dict[str, bool] = {}
    parameters = dict(model.named_parameters())
    copies: list[tuple[Tensor, Tensor]] = []
    with files() as mapped, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        pieces: list[_Piece] = []
        for name, tensor in [*parameters.items(), *model.named_buffers()]:
            is_parameter = name in parameters
            if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.itemsize == 1):
                finite[name] = not is_parameter or _finite(tensor)
            if tensor.device.type == "cpu":
                if not tensor.is_contiguous():
                    tensor.data = tensor.clone(memory_format=torch.contiguous_format)
                target = None if tensor.data_ptr() % ALIGNMENT == 0 else torch.empty_like(tensor)
                if target is not None:
                    copies.append((tensor, target))
                unchecked = is_parameter and tensor.dtype.is_floating_point and name not in finite
                pieces += _cut(name, tensor, target, tensor.dtype if unchecked else None, mapped)
        for piece, good in zip(pieces, pool.map(_copy_and_check, pieces), strict=True):
            finite[piece.name] = finite.get(piece.name, True) and good
    for name in parameters:
        if not finite.get(name, True):
            raise UserError(f"weights: {name} of {spec} holds NaN or infinity, expected finite numbers.")
    for tensor, target in copies:
        tensor.data = target


def _cut(
    name: str, tensor: Tensor, target: Tensor | None, dtype: torch.dtype | None, mapped: Files
) -> list[_Piece]:
    """The pieces of a tensor, none if there is nothing to copy or to check."""
    if target is None and dtype is None:
        return []
    source, step = _integers(tensor), PIECE // tensor.itemsize
    into = None if target is None else _integers(target)
    pieces = []
    for start in range(0, len(source), step):
        part = source[start : start + step]
        file = None if into is None or part.nbytes < SMALL else mapped.at(part.ctypes.data, part.nbytes)
        pieces.append(_Piece(name, part, None if into is None else into[start : start + step], dtype, file))
    return pieces


def _integers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().reshape(-1).view(_BITS[tensor.itemsize]).numpy()


def _copy_and_check(piece: _Piece) -> bool:
    """Copy a piece that has a target; returns whether its values are finite, true where they are not checked."""
    # NumPy rather than PyTorch: its operations stay in this thread, and other threads run meanwhile.
    step = CHUNK // piece.source.itemsize
    for start in range(0, len(piece.source), step):
        chunk = piece.source[start : start + step]
        if piece.target is not None:
            into = piece.target[start : start + step]
            if piece.file is None or not _read(into, piece.file[0], piece.file[1] + start * into.itemsize):
                into[...] = chunk
            chunk = into
        if piece.dtype is not None and not _finite_bits(chunk, piece.dtype):
            return False
    return True


def _read(into: np.ndarray, descriptor: int, offset: int) -> bool:
    """Fill `into` from a file; returns whether all of it could be read."""
    return os.preadv(descriptor, [into.data], offset) == into.nbytes


def _finite_bits(bits: np.ndarray, dtype: torch.dtype) -> bool:
    # Seen as integers, infinity and every NaN are the greatest of their sign: signed for +, unsigned for -.
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(_BITS[dtype.itemsize]))
    unsigned = bits.view(f"u{bits.itemsize}")
    return bool(bits.max() < infinity and unsigned.max() < infinity + (1 << (8 * bits.itemsize - 1)))


def _finite(tensor: Tensor) -> bool:
    if not tensor.numel() or tensor.dtype.itemsize == 1:
        return bool(torch.isfinite(tensor).all())
    # NaN is both the least and the greatest of any values, so no second tensor is needed.
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))

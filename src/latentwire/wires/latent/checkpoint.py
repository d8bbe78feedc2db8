"""A trained wire on disk: its configuration, and every piece that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.lm.loading.saving import appearing

CONFIG, WEIGHTS = "wire.json", "wire.safetensors"


def write(folder: Path, config: BaseModel, pieces: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a wire. The folder appears, in place of what was there, only once it reads back equal.

    Args:
        config: the wire's configuration. pieces: its trained tensors, by name.
        dtype: what numbers are rounded to; None keeps them as they are.

    Raises:
        UserError: a piece is not finite.
        RuntimeError: what was read back is not what was written.
    """
    tensors = {name: piece.detach().to("cpu", dtype or piece.dtype).contiguous() for name, piece in pieces.items()}
    for name, tensor in tensors.items():
        _check_finite(folder, name, tensor)
    with appearing(folder) as partial:
        save_file(tensors, partial / WEIGHTS)
        write_atomically(partial / CONFIG, config.model_dump_json(indent=1) + "\n")
        back = load_file(partial / WEIGHTS)
        wrong = [name for name in tensors if name not in back or not torch.equal(back[name], tensors[name])]
        if wrong or back.keys() != tensors.keys():
            raise RuntimeError(f"{(wrong or ['a piece'])[0]} did not come back from disk as it was written")
        if type(config).model_validate_json((partial / CONFIG).read_text()) != config:
            raise RuntimeError(f"{CONFIG} did not come back from disk as it was written")


def read(folder: Path) -> dict[str, Tensor]:
    """All pieces in a wire's folder.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"wire: {folder / WEIGHTS} cannot be read: {error}.") from error


def check(folder: Path, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare the pieces in a folder with those that a wire expects.

    Raises:
        UserError: a piece is missing, unexpected, of another shape, or not finite.
    """
    for name, tensor in wanted.items():
        if name not in stored:
            raise UserError(f"wire: {folder} lacks {name}, expected every piece that was trained.")
        if stored[name].shape != tensor.shape or not stored[name].is_floating_point():
            raise UserError(
                f"wire: {folder}, {name}: found {stored[name].dtype} of shape {tuple(stored[name].shape)}, "
                f"expected floating-point numbers of shape {tuple(tensor.shape)}."
            )
        _check_finite(folder, name, stored[name])
    for name in sorted(stored.keys() - wanted.keys()):
        raise UserError(f"wire: {folder} holds {name}, which this wire has no place for.")


def _check_finite(folder: Path, name: str, found: Tensor) -> None:
    if not bool(torch.isfinite(found).all()):
        raise UserError(f"wire: {folder}, {name}: found values that are not finite, expected numbers.")

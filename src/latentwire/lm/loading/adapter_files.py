"""The files of a PEFT adapter, before anything is made of them."""

from __future__ import annotations

import json
import textwrap
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latentwire.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA, PREFIX_TUNING = "LORA", "PREFIX_TUNING"


def kind(adapter: str | PathLike[str]) -> str:
    """`LORA` or `PREFIX_TUNING`, as PEFT calls them.

    Raises:
        UserError: the folder holds no adapter, a pickled one, or one of another kind.
    """
    folder = Path(adapter)
    try:
        found = json.loads((folder / CONFIG).read_text())["peft_type"]
    except OSError as error:
        raise UserError(
            f"adapter: found no {CONFIG} in {folder}, expected a folder with a PEFT adapter."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"adapter: {folder / CONFIG} is not the configuration of a PEFT adapter.") from error
    if found not in (LORA, PREFIX_TUNING):
        raise UserError(
            f"adapter: found {found} in {folder}, expected {LORA} or {PREFIX_TUNING}; prompts learned as "
            "embeddings would shift the blocks of a mask, and others are not verified to merge."
        )
    if not (folder / WEIGHTS).exists():
        raise UserError(f"adapter: found no {WEIGHTS} in {folder}; pickled weights are not read.")
    return str(found)


def tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors by name.

    Raises:
        UserError: the file is damaged, or a tensor holds what is no finite number; names it.
    """
    try:
        stored = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"adapter: {folder / WEIGHTS} cannot be read: {told(error)}.") from error
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"adapter: {name} of {folder} holds NaN or infinity, expected finite numbers.")
    return stored


def refuse_odd(odd: set[str], wanted: set[str], folder: Path) -> None:
    """Raise a UserError that names the first tensor which only the adapter or only its model has."""
    if odd:
        first = min(odd)
        side = "is missing from" if first in wanted else "finds no place in the model, though it is in"
        raise UserError(f"adapter: {first} {side} {folder}, expected an adapter of this very model.")


def told(error: Exception) -> str:
    """What an error says, in short; its first line often only announces those that name a tensor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return textwrap.shorten(" ".join(lines[:2]), 300, placeholder=" ...").rstrip(".")

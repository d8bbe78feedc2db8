"""The files of a PEFT adapter, read before anything is made of them."""

from __future__ import annotations

import json
import textwrap
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.loading import tokenizer_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA, PREFIX_TUNING = "LORA", "PREFIX_TUNING"
_TOKENIZER = ("tokenizer.json", "tokenizer.model")


def kind(adapter: str | PathLike[str]) -> str:
    """Which method an adapter is of: `LORA` or `PREFIX_TUNING`, as PEFT calls them.

    Raises:
        UserError: the folder holds no adapter, a pickled one, or one of another method.

    Example:
        >>> kind("runs/my-lora")
        'LORA'
    """
    folder = Path(adapter)
    try:
        method = json.loads((folder / CONFIG).read_text())["peft_type"]
    except OSError as error:
        raise UserError(
            f"adapter: found no {CONFIG} in {folder}, expected a folder with a PEFT adapter."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"adapter: {folder / CONFIG} is not the configuration of a PEFT adapter.") from error
    if method not in (LORA, PREFIX_TUNING):
        raise UserError(
            f"adapter: found {method} in {folder}, expected {LORA} or {PREFIX_TUNING}; prompts learned as "
            "embeddings would shift the blocks of a mask, and others are not verified to merge."
        )
    if not (folder / WEIGHTS).exists():
        raise UserError(f"adapter: found no {WEIGHTS} in {folder}; pickled weights are not read.")
    return str(method)


def base_model(folder: Path) -> str | None:
    """The model that an adapter's configuration says it was trained for, None where it names none."""
    try:
        name = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(name) if name else None


def tokenizer(
    adapter: str | PathLike[str], base: PreTrainedTokenizerBase, rows: int, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer to read an adapter with: the one saved beside it, or the base model's where there is none.

    Args:
        adapter: the adapter's folder.
        base: the base model's tokenizer.
        rows: how many rows the model's embedding has.
        trust_remote_code: whether code that comes with the tokenizer may run.

    Raises:
        UserError: the adapter's tokenizer cannot be read, or has tokens that the model has no embedding for.
    """
    folder = Path(adapter)
    if not any((folder / name).exists() for name in _TOKENIZER):
        return base
    try:
        own: PreTrainedTokenizerBase = tokenizer_files.read(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever it is that cannot be read
        raise UserError(f"adapter: the tokenizer in {folder} cannot be read: {told(error)}.") from error
    new = {token: number for token, number in own.get_vocab().items() if number >= rows}
    if len(own) > len(base) and new:
        token = min(new, key=new.__getitem__)
        raise UserError(
            f"adapter: the tokenizer in {folder} gives {token!r} the id {new[token]}, and the model has {rows} "
            "embeddings; resize the model's embedding and merge the adapter first, then load the merged model."
        )
    if own.chat_template is None:
        own.chat_template = base.chat_template
    return own


def tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors by name.

    Raises:
        UserError: the file is damaged, or a tensor holds a value that is not finite; the sentence names it.
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
    """Raise a `UserError` that names the first tensor which only the adapter or only its model has."""
    if odd:
        first = min(odd)
        side = "is missing from" if first in wanted else "finds no place in the model, though it is in"
        raise UserError(f"adapter: {first} {side} {folder}, expected an adapter of this very model.")


def told(error: Exception) -> str:
    """What an error says, in short: its first line often only announces those that name a tensor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return textwrap.shorten(" ".join(lines[:2]), 300, placeholder=" ...").rstrip(".")

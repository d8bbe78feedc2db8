"""PEFT adapters, merged into the model that they were trained for."""

from __future__ import annotations

import json
import textwrap
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm import checks

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: str | PathLike[str]) -> PreTrainedModel:
    """`model` with the LoRA adapter of a folder merged into its weights; no trace of PEFT is left.

    Raises:
        UserError: no adapter, one that is not a LoRA, one whose tensors are pickled, not finite or those of
            another model, or one that cannot be merged (tied weights, for one, cannot be adapted apart).
    """
    import peft

    folder = Path(adapter)
    _refuse(folder)
    stored = load_file(folder / _WEIGHTS)
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"adapter: {name} of {folder} holds NaN or infinity, expected finite numbers.")
    try:
        adapted: Any = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # whatever PEFT raises, these files are no adapter of this model
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # The first line only announces those that name a tensor.
        told = textwrap.shorten(" ".join(lines[:2]), 300, placeholder=" ...").rstrip(".")
        raise UserError(f"adapter: {folder} does not fit {type(model).__name__}: {told}.") from error
    # PEFT only warns of these, and leaves what is missing as it was drawn.
    wanted = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT stores an adapted embedding or head a second time, as it was: that is no part of the adapter.
    own = {name for name in stored if ".base_layer." not in name}
    if odd := sorted(own ^ wanted.keys()):
        side = "is missing from" if odd[0] in wanted else "finds no place in the model, though it is in"
        raise UserError(f"adapter: {odd[0]} {side} {folder}, expected an adapter of this very model.")
    ids = torch.arange(3, 10, device=model.device)[None]
    with checks.evaluating(adapted):
        before = model(input_ids=ids, use_cache=False).logits
        merged: PreTrainedModel = adapted.merge_and_unload()
        after = merged(input_ids=ids, use_cache=False).logits
    if not checks.close(after, before):
        raise UserError(
            f"adapter: {folder} merged into {type(model).__name__} gives other logits than beside it, "
            "expected an adapter whose changes can be added to the weights."
        )
    return merged.requires_grad_(True)


def _refuse(folder: Path) -> None:
    try:
        kind = json.loads((folder / _CONFIG).read_text())["peft_type"]
    except OSError as error:
        raise UserError(
            f"adapter: found no {_CONFIG} in {folder}, expected a folder with a PEFT adapter."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"adapter: {folder / _CONFIG} is not the configuration of a PEFT adapter.") from error
    if kind != "LORA":
        raise UserError(
            f"adapter: found {kind} in {folder}, expected LORA; learned prompts and prefixes stand before every "
            "token, where they would shift the blocks of a mask, and others are not verified to merge."
        )
    if not (folder / _WEIGHTS).exists():
        raise UserError(f"adapter: found no {_WEIGHTS} in {folder}; pickled weights are not read.")

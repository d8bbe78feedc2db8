"""LoRA adapters of PEFT, merged into the model that they were trained for."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm.loading import adapter_files, reading_probe
from latentwire.lm.loading.eval_mode import evaluating


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: str | PathLike[str]) -> PreTrainedModel:
    """Merge the LoRA adapter of a folder into the weights of `model`; no trace of PEFT is left.

    Args:
        model: the base model.
        adapter: the adapter's folder.

    Raises:
        UserError: the adapter's tensors are not finite or belong to another model, or it cannot be merged (tied
            weights cannot be adapted apart, and a bias of LoRA needs a layer that has one).

    Example:
        >>> model = merge(model, "runs/my-lora")
    """
    import peft

    folder, kind = Path(adapter), type(model).__name__
    stored = adapter_files.tensors(folder)
    try:
        adapted: Any = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # whatever PEFT raises, these files are no adapter of this model
        raise UserError(f"adapter: {folder} does not fit {kind}: {adapter_files.told(error)}.") from error
    # PEFT only warns of these, and leaves what is missing as it was drawn.
    wanted = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT stores an adapted embedding or head a second time, as it was: that is no part of the adapter.
    own = {name for name in stored if ".base_layer." not in name}
    adapter_files.refuse_odd(own ^ wanted.keys(), set(wanted), folder)
    ids = torch.arange(3, 10, device=model.device)[None]
    with evaluating(adapted):
        before = model(input_ids=ids, use_cache=False).logits
        try:
            merged: PreTrainedModel = adapted.merge_and_unload()
        except Exception as error:  # PEFT refuses some adapters only when it merges them
            raise UserError(
                f"adapter: {folder} cannot be merged into {kind}: {adapter_files.told(error)}; "
                "expected an adapter whose changes can be added to the weights."
            ) from error
        after = merged(input_ids=ids, use_cache=False).logits
    if not reading_probe.close(after, before):
        raise UserError(
            f"adapter: {folder} merged into {kind} gives other logits than beside it, "
            "expected an adapter whose changes can be added to the weights."
        )
    return merged.requires_grad_(True)

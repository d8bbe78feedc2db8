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
    """`model` with the LoRA adapter of a folder merged into its weights; no trace of PEFT is left.

    Raises:
        UserError: an adapter whose tensors are not finite or those of another model, or one that cannot be merged
            (tied weights, for one, cannot be adapted apart).
    """
    import peft

    folder = Path(adapter)
    stored = adapter_files.tensors(folder)
    try:
        adapted: Any = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # whatever PEFT raises, these files are no adapter of this model
        told = adapter_files.told(error)
        raise UserError(f"adapter: {folder} does not fit {type(model).__name__}: {told}.") from error
    # PEFT only warns of these, and leaves what is missing as it was drawn.
    wanted = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT stores an adapted embedding or head a second time, as it was: that is no part of the adapter.
    own = {name for name in stored if ".base_layer." not in name}
    adapter_files.refuse_odd(own ^ wanted.keys(), set(wanted), folder)
    ids = torch.arange(3, 10, device=model.device)[None]
    with evaluating(adapted):
        before = model(input_ids=ids, use_cache=False).logits
        merged: PreTrainedModel = adapted.merge_and_unload()
        after = merged(input_ids=ids, use_cache=False).logits
    if not reading_probe.close(after, before):
        raise UserError(
            f"adapter: {folder} merged into {type(model).__name__} gives other logits than beside it, "
            "expected an adapter whose changes can be added to the weights."
        )
    return merged.requires_grad_(True)

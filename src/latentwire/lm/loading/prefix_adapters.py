"""PEFT's prefix-tuning adapters, read and written so that a model gives the same logits as with PEFT."""

from __future__ import annotations

import copy
import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.decoder import Decoder
from latentwire.lm.loading import adapter_files, reading_probe
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.loading.prefix_tuning import PrefixTuning
from latentwire.lm.loading.saving import FORMAT_FILE, appearing
from latentwire.lm.masks.reading import Reading
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat

_TENSOR = "prompt_embeddings"


def load(lm: Decoder, adapter: str | PathLike[str]) -> PrefixTuning:
    """Read the learned prefix of a folder for `lm`, and freeze the weights of `lm`.

    Args:
        lm: the model that the adapter was trained for.
        adapter: the adapter's folder.

    Raises:
        UserError: its tensor is missing, unknown, of another shape or not finite, or PEFT gives other logits for a
            few tokens after it than `lm` does.
    """
    import peft

    folder = Path(adapter)
    stored = adapter_files.tensors(folder)
    adapter_files.refuse_odd(stored.keys() ^ {_TENSOR}, {_TENSOR}, folder)
    kind = type(lm.model).__name__
    try:
        beside: Any = peft.PeftModel.from_pretrained(lm.model, str(folder))
        with evaluating(beside), torch.no_grad():
            want = beside(input_ids=_probe(lm)).logits
    except Exception as error:  # whatever PEFT raises, these files are no adapter of this model
        raise UserError(f"adapter: {folder} does not fit {kind}: {adapter_files.told(error)}.") from error
    config = beside.active_peft_config
    found = PrefixTuning(stored[_TENSOR].to(lm.device), layers=config.num_layers, heads=config.num_attention_heads)
    if not reading_probe.close(_logits(lm, found), want):
        raise UserError(
            f"adapter: after the prefix of {folder} {kind} gives other logits than with PEFT, "
            "expected a model that puts the same number of keys and values before every layer."
        )
    return found


def save(lm: Decoder, learned: PrefixTuning, prompt_format: PromptFormat, folder: Path) -> None:
    """Write the adapter, and nothing of the model, as PEFT does; the folder appears only once it reloads equal.

    Args:
        lm: the model that the prefix belongs to; its own weights must be frozen.
        learned: the prefix.
        prompt_format: the format that it was trained with.
        folder: the folder to create or to replace.

    Raises:
        RuntimeError: weights of the model itself can train, so that more than the adapter may have changed; or
            PEFT does not read what was written, or reading it back changes a logit. Nothing is left of the
            folder then.
    """
    import peft

    if trained := [name for name, parameter in lm.model.named_parameters() if parameter.requires_grad]:
        raise RuntimeError(f"{trained[0]} trains too, and an adapter alone would lose it; freeze the model")
    with appearing(folder) as partial:
        width = learned.weight.shape[1] // (2 * learned.layers)
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=lm.name,
            num_virtual_tokens=learned.tokens,
            num_layers=learned.layers,
            num_attention_heads=learned.heads,
            token_dim=width,
            encoder_hidden_size=width,
            num_transformer_submodules=1,
        )
        config.save_pretrained(str(partial))
        save_file(
            {_TENSOR: learned.weight.detach().contiguous()}, partial / adapter_files.WEIGHTS, {"format": "pt"}
        )
        (partial / FORMAT_FILE).write_text(json.dumps(prompt_format.model_dump(), indent=1) + "\n")
        try:
            again = load(lm, partial)
        except UserError as error:
            raise RuntimeError(f"the adapter does not come back as it was written: {error}") from error
        if not torch.equal(_logits(lm, again), _logits(lm, learned)):
            raise RuntimeError("the adapter read back from disk gives other logits on a probe batch")


def _probe(lm: Decoder) -> Tensor:
    return torch.arange(3, 10, device=lm.device)[None]


@torch.no_grad()
def _logits(lm: Decoder, learned: PrefixTuning) -> Tensor:
    ids = _probe(lm)
    reader = copy.copy(lm)
    reader.prefix_tuning = learned
    columns = Prefix.of_tokens(ids.tolist(), device=lm.device).columns
    with evaluating(lm.model):
        return reader.head(reader.run(ids, columns, Reading(columns)))

"""Full weights or LoRA: what trains, and how it becomes a plain model again."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from torch import nn

from latentwire.errors import UserError
from latentwire.lm import weights
from latentwire.lm.model import LM
from latentwire.training.config import Lora


class Trainable:
    """A model made trainable: all of it, or low-rank adapters on every linear layer but the head.

    Raises:
        UserError: it stands behind a learned prefix, or adapters are asked for on layers that it has not.
    """

    def __init__(self, lm: LM, lora: Lora | None) -> None:
        if lm.prefix_tuning is not None:
            # What is exported is the model alone, which answers otherwise without it.
            raise UserError(f"model: found {lm.name} with a prefix, expected a model without a learned prefix.")
        self._lm = lm
        self._adapted: Any = None
        if lora is None:
            lm.model.requires_grad_(True)
            return
        from peft import LoraConfig, get_peft_model

        check_layers(lm, lora)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear" if lora.layers is None else linears(lm.model, lora.layers),
            task_type="CAUSAL_LM",
        )
        # The adapters go into the layers of `lm.model` itself, which reads on as before.
        self._adapted = get_peft_model(lm.model, config)

    def export(self, folder: Path) -> None:
        """Write the model as it is now as a plain model folder, adapters merged; training can go on."""
        # Merging in place and undoing it would change the weights by a rounding.
        model: Any = self._lm.model
        if self._adapted is not None:
            model = copy.deepcopy(self._adapted).merge_and_unload()
        weights.save(model, self._lm.tokenizer, self._lm.format, folder)

    def settle(self, folder: Path) -> None:
        """End training: no adapters, no gradients, and the weights of an exported folder."""
        if self._adapted is not None:
            self._lm.model = self._adapted.unload()
        self._lm.model.requires_grad_(False)
        weights.restore(self._lm.model, folder)


def check_layers(lm: LM, lora: Lora) -> None:
    """Raise a `UserError` if adapters are asked for on more layers than the model has."""
    count = lm.model.config.get_text_config().num_hidden_layers
    if lora.layers is not None and lora.layers > count:
        raise UserError(f"lora.layers: found {lora.layers}, expected at most the {count} of {lm.name}.")


def linears(model: nn.Module, layers: int) -> list[str]:
    """Names of the linear modules in the first layers; a layer's number is the first one in the name."""
    numbers = ((name, re.search(r"\.(\d+)\.", name), module) for name, module in model.named_modules())
    return [name for name, at, module in numbers if at and int(at[1]) < layers and isinstance(module, nn.Linear)]

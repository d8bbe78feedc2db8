"""Low-rank adapters: their settings, and how they are put into a model's own layers."""

from __future__ import annotations

import re
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from latentwire.errors import UserError
from latentwire.lm.model import LM

COPIES = 4 << 30
"""The most bytes of weights that are copied so that adapters can be added to them."""


class Lora(BaseModel):
    """Low-rank adapters on every linear layer but the head (Hu et al., 2106.09685).

    Attributes:
        rank: of each update.
        alpha: the update is multiplied by `alpha / rank`.
        dropout: share of the inputs that is dropped in training.
        layers: adapt only the first N layers; None adapts all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: int | None = Field(default=None, ge=1)

    def for_peft(self, lm: LM) -> Any:
        """The `peft.LoraConfig` of these settings for a model. Raises `UserError` as `check_layers` does."""
        from peft import LoraConfig

        check_layers(lm, self)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear" if self.layers is None else _linears(lm.model, self.layers),
            task_type="CAUSAL_LM",
        )


def check_layers(lm: LM, lora: Lora) -> None:
    """Raise a `UserError` if adapters are asked for on more layers than the model has."""
    count = lm.model.config.get_text_config().num_hidden_layers
    if lora.layers is not None and lora.layers > count:
        raise UserError(f"lora.layers: found {lora.layers}, expected at most the {count} of {lm.name}.")


def inject(lm: LM, lora: Lora) -> nn.ModuleDict:
    """Put new float32 adapters into a model's own layers.

    From then on the model computes with them: pass a twin (`LM.twin`) to leave the model as it is.

    Returns:
        All adapters as one module; the keys are the names of their modules with `/` for `.`.

    Example:
        >>> adapters = inject(lm.twin(), Lora(rank=8))
    """
    from peft import inject_adapter_in_model

    from latentwire.lm.loading.lora_forward import quick

    inject_adapter_in_model(lora.for_peft(lm), lm.model)
    quick(lm.model)
    ends = ("lora_A.default", "lora_B.default", "lora_dropout.default")
    adapters = {name.replace(".", "/"): module for name, module in lm.model.named_modules() if name.endswith(ends)}
    for module in adapters.values():
        module.requires_grad_(True).float()
    return nn.ModuleDict(adapters)


@torch.no_grad()
def merge(model: nn.Module) -> bool:
    """Add low-rank adapters to the weights of their layers, so that a pass costs what it costs without adapters.

    Adapted weights become copies, since other models share them. Nothing changes where the sum would round more
    than a pass does (16 bits), where the weights are not on a CPU, or where the copies would take more than
    `COPIES`.

    Returns:
        Whether they were added.
    """
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return False
    from peft.tuners.lora.layer import Linear  # PEFT takes long to import

    layers = [module for module in model.modules() if isinstance(module, Linear)]
    bases: list[Any] = [layer.get_base_layer() for layer in layers]
    weights = [base.weight for base in bases]
    if not all(type(each) is nn.Parameter and each.dtype == torch.float32 and each.is_cpu for each in weights):
        return False
    if sum(each.nbytes for each in weights) > COPIES:
        return False
    for layer, base in zip(layers, bases, strict=True):
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        layer.merge()
    return bool(layers)


def _linears(model: nn.Module, layers: int) -> list[str]:
    """Names of the linear modules in the first layers; a layer's number is the first one in the name."""
    numbers = ((name, re.search(r"\.(\d+)\.", name), module) for name, module in model.named_modules())
    return [name for name, at, module in numbers if at and int(at[1]) < layers and isinstance(module, nn.Linear)]

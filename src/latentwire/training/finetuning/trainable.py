"""Full weights or LoRA: what trains, and how it becomes a plain model again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentwire.errors import UserError
from latentwire.lm.loading import weights
from latentwire.lm.loading.lora import Lora
from latentwire.lm.model import LM
from latentwire.process_group import Group
from latentwire.training.sharding import Sharded


class Trainable:
    """A model made trainable: all of it, or low-rank adapters on every linear layer but the head.

    Args:
        lm: The model, changed in place.
        lora: The adapters; None trains all weights.
        keeps_teacher: Keep the model as it is now in `teacher`: beside adapters it costs nothing, beside full
            weights it is a frozen copy.

    Raises:
        UserError: The model has a learned prefix, or adapters are asked for on layers that it does not have.
    """

    def __init__(self, lm: LM, lora: Lora | None, *, keeps_teacher: bool = False) -> None:
        if lm.prefix_tuning is not None:
            # What is exported is the model alone, which answers otherwise without it.
            raise UserError(f"model: found {lm.name} with a prefix, expected a model without a learned prefix.")
        self._lm = lm
        self._adapted: Any = None
        self.sharded: Sharded | None = None
        self.teacher: LM | None = None
        if lora is None:
            if keeps_teacher:
                self.teacher = lm.copied()
                self.teacher.model.requires_grad_(False)
            lm.model.requires_grad_(True)
            return
        if keeps_teacher:
            self.teacher = lm.twin()  # shares every weight, and gets no adapters
        from peft import get_peft_model

        # The adapters go into the layers of `lm.model` itself, which reads on as before.
        self._adapted = get_peft_model(lm.model, lora.for_peft(lm))

    def shard(self, step: nn.Module, group: Group) -> Sharded | None:
        """Share all weights out among processes; None for adapters, which every process has whole."""
        if self._adapted is None and group.size > 1:
            self.sharded = Sharded(self._lm, step, group)
        return self.sharded

    def export(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the model as it is now as a plain model folder, adapters merged; training can go on.

        Args:
            folder: Where to.
            dtype: What floating-point weights are written in; None writes them as they are.
        """
        # Merging in place and undoing it would change the weights by a rounding.
        model: Any = self._lm.model if self.sharded is None else self.sharded.gathered()
        if model is None:
            return  # the first process writes
        if self._adapted is not None:
            model = copy.deepcopy(self._adapted).merge_and_unload()
        if dtype is not None and dtype != model.dtype:
            model = _cast(model, dtype)
        weights.save(model, self._lm.tokenizer, self._lm.format, folder)

    def settle(self, folder: Path) -> None:
        """End training: no adapters, no gradients, and the weights of an exported folder."""
        if self._adapted is not None:
            self._lm.model = self._adapted.unload()
        if self.sharded is not None:
            self.sharded.settle(lambda model: weights.restore(model, folder))
            return
        self._lm.model.requires_grad_(False)
        weights.restore(self._lm.model, folder)


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """A copy in main memory with weights of this dtype, but for those that the model keeps in float32."""
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    memo: dict[int, Any] = {}
    for name, weight in model.named_parameters():
        wanted = weight.dtype if any(part in name for part in kept) else dtype
        memo[id(weight)] = nn.Parameter(weight.detach().to("cpu", wanted), requires_grad=False)
    for _, buffer in model.named_buffers():
        memo[id(buffer)] = buffer.detach().cpu()
    # What is in the memo is not copied: the accelerator never holds a second model.
    return copy.deepcopy(model, memo)

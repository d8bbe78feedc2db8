"""Checks of a finetuning before anything is trained, or even written."""

from __future__ import annotations

import torch

from latentwire import wires
from latentwire.lm.loading.lora import check_layers
from latentwire.lm.loading.saving import check_saveable
from latentwire.lm.masks.kernel_choice import Choice, choose
from latentwire.lm.model import LM
from latentwire.lm.tapping import depth
from latentwire.training import optimizers
from latentwire.training.finetuning.finetuning_config import Finetuning


def check(settings: Finetuning, lm: LM) -> None:
    """Refuse what would fail later: a leaking wire, data that cannot be read, adapters or hidden states of layers
    that the model does not have, an optimizer or attention kernel that cannot train it here, a model that cannot
    be saved.

    A study calls this for all of its finetunings before its first stage, so that hours of work are not lost to a
    file that was missing from the start. A hub dataset is downloaded here, and read from the cache later.

    Raises:
        UserError: One of those, naming the field.
    """
    wires.parse(settings.wire).refuse_training(force=settings.force_leaky)
    next(iter(settings.data.sources("train", 1, settings.eval_samples)))
    if settings.lora is not None:
        check_layers(lm, settings.lora)
    if settings.optimizer == "adamw8bit":
        optimizers.check_8bit(lm.device.type)
    for objective in settings.objectives:
        objective.taps(depth(lm))
    kernel(settings, lm)
    check_saveable(lm.model, lm.tokenizer, lm.format)


def kernel(settings: Finetuning, lm: LM) -> Choice:
    """The attention kernel that the finetuning trains with, and why.

    Raises:
        UserError: The one asked for would not run, or would compute something else.
    """
    dtype = torch.bfloat16 if settings.precision == "bf16" else lm.model.dtype
    return choose(lm.model, settings.attention, dtype=dtype)

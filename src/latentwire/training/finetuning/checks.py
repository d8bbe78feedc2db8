"""Checks of a finetuning before anything is trained, or even written."""

from __future__ import annotations

import torch

from latentwire import process_group, wires
from latentwire.errors import UserError
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
    _check_shardable(settings, depth(lm), process_group.current().size)
    kernel(settings, lm)
    check_saveable(lm.model, lm.tokenizer, lm.format)


def kernel(settings: Finetuning, lm: LM) -> Choice:
    """The attention kernel that the finetuning trains with, and why.

    Raises:
        UserError: The one asked for would not run, or would compute something else.
    """
    dtype = torch.bfloat16 if settings.precision == "bf16" else lm.model.dtype
    return choose(lm.model, settings.attention, dtype=dtype)


def _check_shardable(settings: Finetuning, layers: int, processes: int) -> None:
    """Refuse what needs whole gradients or whole weights where processes have shares of them."""
    if processes == 1 or settings.lora is not None:
        return
    tapped = next((objective.kind for objective in settings.objectives if objective.taps(layers)), None)
    if settings.optimizer != "adamw":
        found, expected = f"optimizer: found {settings.optimizer}", "adamw, whose state is shared out"
    elif settings.release_gradients:
        found, expected = "release_gradients: found true", "false: gradients are averaged over processes"
    elif settings.weights != "float32":
        found, expected = f"weights: found {settings.weights}", "float32: weights and optimizer are shared out"
    elif tapped is not None:
        found, expected = (
            f"objectives: found {tapped}",
            "none that looks into layers, which are gathered one at a time",
        )
    else:
        return
    raise UserError(
        f"{found} with all weights trained in {processes} processes, expected {expected}; or use lora."
    )

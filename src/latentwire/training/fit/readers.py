"""Readers that learn along with a wire: adapters in a twin, so that the reader itself stays what it was.

The twin shares every weight with the reader. Toggling adapters in one module between the passes of a step gives
wrong gradients (`lm.model.LM.twin`); here the teacher is the reader, the student its twin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prefix_tuning import PrefixTuning
from latentwire.lm.reading import Reading, Tap
from latentwire.training.adapters import check_layers, linears
from latentwire.training.config import Lora, Settings
from latentwire.wires.latent.modules import LatentModules, key_of

FILE = "readers.json"


class ReaderConfig(Settings):
    """What readers learn. prefix: virtual tokens of prefix tuning."""

    lora: Lora | None = None
    prefix: int | None = None


class TrainedReader(nn.Module):
    """What one reader has learned; `lm` is the reader with it."""

    def __init__(self, lm: LM, config: ReaderConfig) -> None:
        super().__init__()
        self.lm = lm.twin()
        self.lora = nn.ModuleDict() if config.lora is None else _adapt(self.lm, config.lora)
        self.prefix = None if config.prefix is None else _prefix(lm, config.prefix)
        self.lm.prefix_tuning = self.prefix


def attach(modules: LatentModules, readers: Mapping[str, LM], config: ReaderConfig) -> dict[str, LM]:
    """Make pieces of the readers a part of the wire, saved and restored with it; returns the readers with them.

    Without anything to learn the readers are returned as they are.
    """
    if config == ReaderConfig():
        return dict(readers)
    made = {name: TrainedReader(lm, config) for name, lm in readers.items()}
    modules.add("readers", nn.ModuleDict({key_of(name): each for name, each in made.items()}))
    return {name: each.lm for name, each in made.items()}


def save(modules: LatentModules, config: ReaderConfig, folder: Path) -> None:
    """Write the wire with all its pieces."""
    modules.save(folder)
    # Behind the weights: killed in between, the folder holds pieces that nothing has a place for, and is refused.
    if config != ReaderConfig():
        write_atomically(folder / FILE, json.dumps(config.model_dump(mode="json"), indent=1) + "\n")


def saved(folder: Path) -> ReaderConfig:
    """What the readers of a saved wire have learned. Raises `UserError` if the file is damaged."""
    try:
        return ReaderConfig.model_validate_json((folder / FILE).read_text())
    except FileNotFoundError:
        return ReaderConfig()
    except (OSError, ValidationError) as error:
        raise UserError(f"wire: {folder / FILE} cannot be read, expected what its readers learned.") from error


def restore(modules: LatentModules, readers: Mapping[str, LM], folder: Path) -> dict[str, LM]:
    """The way to evaluate: restore a wire with what its readers have learned; returns the readers with it.

    Raises:
        UserError: a piece is missing, or one too many.
    """
    found = attach(modules, readers, saved(folder))
    modules.restore(folder)
    return found


def start(modules: LatentModules, readers: Mapping[str, LM], config: ReaderConfig, folder: Path) -> dict[str, LM]:
    """The way to train on: as `restore`, but readers of a wire without such pieces begin to learn theirs.

    Raises:
        UserError: the readers of the wire to start from have learned other pieces than these.
    """
    before = saved(folder)
    if before not in (ReaderConfig(), config):
        raise UserError(
            f"start: found a wire whose readers have learned {before.model_dump(exclude_none=True)}, expected "
            "reader_lora and reader_prefix to be the same."
        )
    if before == config:
        return restore(modules, readers, folder)
    modules.restore(folder)
    return attach(modules, readers, config)


def _adapt(lm: LM, lora: Lora) -> nn.ModuleDict:
    from peft import LoraConfig, inject_adapter_in_model

    check_layers(lm, lora)
    inject_adapter_in_model(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear" if lora.layers is None else linears(lm.model, lora.layers),
            task_type="CAUSAL_LM",
        ),
        lm.model,
    )
    ends = ("lora_A.default", "lora_B.default", "lora_dropout.default")
    found = {name.replace(".", "/"): module for name, module in lm.model.named_modules() if name.endswith(ends)}
    for module in found.values():
        module.requires_grad_(True).float()
    return nn.ModuleDict(found)


@torch.no_grad()
def _prefix(lm: LM, tokens: int) -> PrefixTuning:
    """Begins as keys and values that the reader itself makes of random tokens (Li and Liang, 2101.00190, 7.4)."""
    ids = torch.randint(lm.embeddings().shape[0], (1, tokens))
    prefix = Prefix.of_tokens(ids.tolist(), device=lm.device)
    tap = Tap()
    lm.run(ids.to(lm.device), prefix.columns, Reading(prefix.columns, tap=tap))
    pairs: list[Tensor] = [each[layer][0] for layer in range(len(tap.keys)) for each in (tap.keys, tap.values)]
    weight = torch.stack(pairs).permute(2, 0, 1, 3).reshape(tokens, -1).float()
    return PrefixTuning(weight, layers=len(tap.keys), heads=pairs[0].shape[0])

"""Readers that were trained with a wire: their adapters are in a twin, so that the reader itself does not change.

The twin shares every weight with the reader. Toggling adapters in one module between the passes of a step gives
wrong gradients (`lm.model.LM.twin`). Here the teacher is the reader, the student is its twin, and arms over other
wires use the reader.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.lm.loading.lora import Lora, inject
from latentwire.lm.loading.prefix_tuning import PrefixTuning
from latentwire.lm.masks.reading import Reading, Tap
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.modules import LatentModules, key_of

FILE = "readers.json"


class ReaderConfig(BaseModel):
    """What readers learn along with a wire.

    Attributes:
        lora: low-rank adapters, or None.
        prefix: how many virtual tokens of prefix tuning, or None.
        without: the readers that learn nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: Lora | None = None
    prefix: int | None = None
    without: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        return self.lora is None and self.prefix is None


class TrainedReader(nn.Module):
    """What one reader learns. `lm` is the twin that reads with it."""

    def __init__(self, lm: LM, config: ReaderConfig) -> None:
        super().__init__()
        self.lm = lm.twin()
        self.lora = nn.ModuleDict() if config.lora is None else inject(self.lm, config.lora)
        self.prefix = None if config.prefix is None else _prefix(lm, config.prefix)
        self.lm.prefix_tuning = self.prefix


def attach(modules: LatentModules, readers: Mapping[str, LM], config: ReaderConfig) -> dict[str, LM]:
    """Add what readers learn to the wire's pieces, saved and restored with it.

    Returns:
        The readers by name, as twins that read with what they learn; a reader that learns nothing as it is.
    """
    learning = {} if config.nothing else {n: lm for n, lm in readers.items() if n not in config.without}
    made = {name: TrainedReader(lm, config) for name, lm in learning.items()}
    if made:
        modules.add("readers", nn.ModuleDict({key_of(name): each for name, each in made.items()}))
    return {name: made[name].lm if name in made else lm for name, lm in readers.items()}


def save(modules: LatentModules, config: ReaderConfig, folder: Path) -> None:
    """Write the wire with all its pieces."""
    modules.save(folder)
    # After the weights: a kill between the two leaves pieces that no wire expects, and the folder is refused.
    if not config.nothing:
        write_atomically(folder / FILE, json.dumps(config.model_dump(mode="json"), indent=1) + "\n")


def saved(folder: Path) -> ReaderConfig:
    """What the readers of a saved wire have learned.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return ReaderConfig.model_validate_json((folder / FILE).read_text())
    except FileNotFoundError:
        return ReaderConfig()
    except (OSError, ValidationError) as error:
        raise UserError(f"wire: {folder / FILE} cannot be read, expected what its readers learned.") from error


def restore(
    modules: LatentModules, readers: Mapping[str, LM], folder: Path, *, new: Collection[str] = ()
) -> dict[str, LM]:
    """Restore a wire and what its readers have learned.

    Args:
        new: readers that the saved wire does not have; what they learn begins anew.

    Returns:
        The readers, as `attach` returns them.

    Raises:
        UserError: a piece is missing or unexpected.
    """
    found = attach(modules, readers, saved(folder))
    modules.restore(folder, new=new)
    return found


@torch.no_grad()
def _prefix(lm: LM, tokens: int) -> PrefixTuning:
    """A prefix that begins as the reader's keys and values of random tokens (Li and Liang, 2101.00190, 7.4)."""
    ids = torch.randint(lm.embeddings().shape[0], (1, tokens))
    prefix = Prefix.of_tokens(ids.tolist(), device=lm.device)
    tap = Tap()
    lm.run(ids.to(lm.device), prefix.columns, Reading(prefix.columns, tap=tap))
    pairs: list[Tensor] = [each[layer][0] for layer in range(len(tap.keys)) for each in (tap.keys, tap.values)]
    weight = torch.stack(pairs).permute(2, 0, 1, 3).reshape(tokens, -1).float()
    return PrefixTuning(weight, layers=len(tap.keys), heads=pairs[0].shape[0])

"""What the training loop asks of whatever it trains, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from latentwire.training.objectives.adapting import Adapting
from latentwire.training.step import Measured, Step


@dataclass(frozen=True)
class Trained:
    """What a training came to. stopped: why it ended.

    peak_accuracy: the highest share of first answer tokens predicted right in an evaluation, that after peak_step
    steps; final_accuracy: in the last one. train_rows_sha256: of tokens, labels and order, equal for two stages
    that saw the same data. tokens: read in training, padding not counted. skipped: by objective, how often there
    was no memory for it.
    """

    steps: int
    stopped: str
    best_step: int
    best_loss: float
    peak_accuracy: float
    peak_step: int
    final_accuracy: float
    train_rows_sha256: str
    tokens: int
    seconds: float
    skipped: dict[str, int] = field(default_factory=dict)


class Trainee(Protocol):
    """What is trained: a model over a wire, or a wire before its readers.

    step: called with a part and the share of steps done, gives `Losses`. module: whose parameters are trained.
    """

    step: Step

    @property
    def module(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def mode(self, training: bool) -> None:
        """Make everything ready to be trained, or to be evaluated."""

    def parts(self, step: int, process: int, processes: int) -> Sequence[Any]:
        """This process's share of a step's data, in as many passes as accumulation asks for."""

    def split_further(self) -> bool:
        """Cut steps into smaller parts from now on, after one ran out of memory; False if none is smaller."""

    def labels(self, part: Any) -> int:
        """How many tokens are learned in a part."""

    def tokens(self, step: int) -> int:
        """How many tokens a step reads, in all processes."""

    def sha256(self) -> str:
        """Of the data and its order."""

    def evaluate(self) -> Measured:
        """On the held-out examples."""

    def samples(self) -> list[dict[str, Any]]:
        """What it says to some of them."""

    @property
    def adapting(self) -> Adapting:
        """The running numbers that objectives follow, saved with every checkpoint."""

    def export(self, folder: Path) -> None:
        """Write what has been trained; training can go on."""

    def settle(self, folder: Path) -> None:
        """End training, with what an exported folder holds."""

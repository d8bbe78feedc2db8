"""What the training loop needs from whatever it trains, and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latentwire.process_group import Group
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.sharding import Sharded
from latentwire.training.training_step import Step


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        steps: Optimizer steps done.
        stopped: Why it ended.
        best_step: The step of the checkpoint `best`.
        best_loss: The lowest evaluation loss, nats a token.
        peak_accuracy: The highest share of first answer tokens predicted right in an evaluation.
        peak_step: The step of that evaluation.
        final_accuracy: The share in the last evaluation.
        train_rows_sha256: Of tokens, labels and order: equal for two stages that saw the same data.
        tokens: Tokens read in training, padding not counted.
        seconds: Time spent in training steps.
        skipped: By objective, how often it did not fit into memory.
        bests: By metric of `best:`, its best value and the step of it.
        text: Exact match and F1 of the untrained model reading the text, where answers were generated.
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
    bests: dict[str, dict[str, float]] = field(default_factory=dict)
    text: dict[str, float] | None = None


@dataclass(frozen=True)
class Answered:
    """A generated answer and the gold ones."""

    prediction: str
    golds: list[str]


class Trainee(Protocol):
    """What is trained: a model over a wire, or a wire for its readers.

    Attributes:
        step: Called with a part and the share of steps done, it returns `Losses`.
        module: Whose parameters are trained.
    """

    step: Step

    @property
    def module(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def mode(self, training: bool) -> None:
        """Make everything ready to be trained, or to be evaluated."""

    def shard(self, group: Group) -> Sharded | None:
        """Share the weights out among processes; None if every process keeps all of what is trained."""

    def parts(self, step: int, process: int, processes: int) -> Sequence[Any]:
        """This process's share of a step's data, in as many passes as accumulation asks for.

        Every process has equally many; where its share is too small, some of them are `Spare`.
        """

    def split_further(self) -> bool:
        """Cut steps into smaller parts from now on, after one ran out of memory; False if none is smaller."""

    def labels(self, part: Any) -> int:
        """How many tokens are learned in a part."""

    def tokens(self, step: int) -> int:
        """How many tokens a step reads, in all processes."""

    def sha256(self) -> str:
        """Of the data and its order."""

    def examples(self, part: Any) -> list[str]:
        """Names of the examples in a part, for messages."""

    def held_out(self) -> Iterable[Any]:
        """The held-out examples, in parts."""

    def asked(self, count: int) -> Sequence[Any]:
        """The first `count` held-out examples, in batches that are answered together."""

    def answers(self, batch: Any, *, text: bool = False) -> list[Answered]:
        """Generated answers to one of these batches.

        Args:
            text: Of the model as it was before training, reading the text.
        """

    def samples(self) -> list[dict[str, Any]]:
        """What it says to some of them."""

    def prefixes(self) -> dict[str, dict[str, float]]:
        """By reader, what it gets in place of the text of some held-out examples, in numbers."""

    @property
    def adapting(self) -> Adapting:
        """The running numbers that objectives follow, saved with every checkpoint."""

    def export(self, folder: Path) -> None:
        """Write what has been trained; training can go on. Sharded weights are written by the first process."""

    def probe(self) -> dict[str, Tensor]:
        """By reader, the logits `(V,)` after `logit_probe.ASKED` as it is now, in evaluation mode."""

    def settle(self, folder: Path) -> None:
        """End training, with what an exported folder holds."""

"""What the stages that train have in common: their data's hash, their seed, and how a training is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from latentwire.runs.identity import file_sha256
from latentwire.runs.log import Log, duration
from latentwire.runs.store import Input
from latentwire.studies.stages.base import Stage
from latentwire.tasks import resolve
from latentwire.tasks.data_files import check_readable
from latentwire.training.trainee import Trained


class TrainingStage(Stage):
    """A stage that trains. Its results are those of the training loop (`training.trainee.Trained`)."""

    section: ClassVar[Literal["evaluations", "finetunings"]] = "finetunings"

    data: Any  # a `training.data.TrainingData`; the settings of each training say which kinds
    seed: int = 0
    if TYPE_CHECKING:
        best: tuple[Any, ...]  # a field of `training.loop_config.Loop`

    def validation_tasks(self) -> list[str]:
        named = list(self.data.world_tasks())
        return [task.name for task in resolve(named, None)] if named else []

    def checkpoints(self) -> list[str]:
        return ["best", "final", *(f"best_{metric}" for metric in self.best[1:])]

    def seeds(self) -> dict[str, int]:
        return {"training": self.seed}

    def hashed_data(self) -> tuple[dict[str, Input], Any]:
        """The files that its data is read from, and what stands for the data in its identity."""
        files = {part: hashed_file(path) for part, path in self.data.files().items()}
        inputs = {f"training data {part}".rstrip(): file for part, file in files.items()}
        return inputs, self.data.identity({part: file.sha256 for part, file in files.items()})


def reported(trained: Trained, log: Log) -> dict[str, Any]:
    """The results of a training, after a line in the log that sums them up."""
    lost = left_out(trained.skipped)
    best = trained.bests.get("loss", {"step": trained.best_step})
    log(
        f"{trained.steps:,} steps in {duration(trained.seconds)}, ended by: {trained.stopped}; "
        f"best evaluation loss {trained.best_loss:.4f} at step {best['step']:,}{f'; {lost}' if lost else ''}"
    )
    return asdict(trained)


def left_out(skipped: Mapping[str, int]) -> str:
    """Which objectives were left out because memory ran short; empty where none was.

    Args:
        skipped: By objective, the number of a reader's passes that went without it.
    """
    counts = [f"{kind} left out of {count:,} passes" for kind, count in skipped.items() if count]
    return f"{', '.join(counts)} for want of memory" if counts else ""


def hashed_file(path: Path) -> Input:
    """A file with its hash. Raises `UserError` with the reason if it cannot be read."""
    check_readable(path)
    return Input(path=str(path), sha256=file_sha256(path))

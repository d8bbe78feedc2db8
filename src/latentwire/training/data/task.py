"""Any task as training data: the world's own splits, or a file of which a part is held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from latentwire.errors import UserError
from latentwire.tasks import DATA_KINDS, FILE_KINDS, data_files, resolve
from latentwire.tasks.base import Split, Task, examples_sha256
from latentwire.training.data.base import ContextExamples, TrainingData, in_turns, kept
from latentwire.training.data.world import SAMPLE


class TaskData(TrainingData):
    """Any task with answers in words; examples that share a context are asked together.

    A task of the made-up world is trained on its own train split. Of a file, one group in twenty, chosen by hash,
    is held out for evaluation.

    Attributes:
        task: its name.
        data: the task's file, where it is read from one; it must be another than the one evaluated in the end.
    """

    kind: Literal["task"]
    task: str
    data: Path | None = None

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        tasks = resolve([self.task], self.data)
        if self.data is None and not all(task.apart for task in tasks):
            raise UserError(
                f"data: found {self.task} without a file, whose only examples are those it is evaluated on; "
                "expected data, a file to train on."
            )
        return islice(in_turns(tasks, partial(kept, split)), start, None)

    def evaluation_tasks(self) -> list[Task]:
        return [replace(task, source=partial(kept, task=task)) for task in resolve([self.task], self.data)]

    def world_tasks(self) -> Sequence[str]:
        return [self.task] if self.data is None else []

    def files(self) -> dict[str, Path]:
        if self.data is not None:
            return data_files(self.task, self.data) if self.task in DATA_KINDS else {"documents": self.data}
        if self.task in FILE_KINDS:
            raise UserError(f"data: found the task {self.task!r} without data, expected a file to train on.")
        return {}

    def identity(self, files: Mapping[str, str]) -> Any:
        generated = [] if files else [task for task in resolve([self.task], None) if task.apart]
        samples = [examples_sha256(islice(task.source("train"), SAMPLE)) for task in generated]
        return [self.task, *files.values(), *samples]

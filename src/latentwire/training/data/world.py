"""The made-up world as training data: examples of its tasks, or passages with all questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, ClassVar, Literal

from pydantic import Field

from latentwire.lm.prompts import Example
from latentwire.tasks import resolve
from latentwire.tasks.base import Split, Task, examples_sha256
from latentwire.tasks.world.sums import WorldTier, training_passage
from latentwire.tasks.world.tiers import TIERS
from latentwire.training.data.base import ContextExamples, Source, TrainingData, in_turns

SAMPLE = 100
"""This many examples stand for an endless train split in an identity."""


class WorldData(TrainingData):
    """Examples of the made-up world's tasks, from their train split; evaluation takes the validation split.

    Attributes:
        tasks: names of tasks of the world, or of groups of them.
    """

    kind: Literal["world"] = "world"
    tasks: tuple[str, ...] = ("tiers",)

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        return islice(in_turns(self.evaluation_tasks(), lambda task: task.source(split)), start, None)

    def sources(self, split: Split, limit: int | None, held_out: int) -> Iterator[Source]:
        """Single examples, the tasks taking turns, so that any number of them holds equal parts of each."""
        return islice(_examples_in_turns(self.evaluation_tasks(), split), limit)

    def evaluation_tasks(self) -> list[Task]:
        return resolve(list(self.tasks), None)

    def world_tasks(self) -> Sequence[str]:
        return self.tasks

    def identity(self, files: Mapping[str, str]) -> Any:
        samples = {task.name: islice(task.source("train"), SAMPLE) for task in self.evaluation_tasks()}
        return {name: examples_sha256(examples) for name, examples in samples.items()}


class WorldPassages(TrainingData):
    """Passages of the made-up world with all questions of some tiers; evaluation takes the validation split.

    Attributes:
        tiers: of which tiers questions are asked. With `sums` among N tiers, one passage in N is a word problem.
    """

    kind: Literal["world"] = "world"
    tiers: tuple[WorldTier, ...] = Field(default=TIERS, min_length=1)

    generated: ClassVar[bool] = True

    def contexts(self, split: Split, start: int = 0) -> Iterator[ContextExamples]:
        if split == "train":
            return (ContextExamples(training_passage(self.tiers, number)) for number in count(start))
        return islice(in_turns(self.evaluation_tasks(), lambda task: task.source(split)), start, None)

    def evaluation_tasks(self) -> list[Task]:
        return resolve(list(self.tiers), None)

    def world_tasks(self) -> Sequence[str]:
        return self.tiers

    def identity(self, files: Mapping[str, str]) -> Any:
        return [examples_sha256(training_passage(self.tiers, number)) for number in range(SAMPLE)]


def _examples_in_turns(tasks: Sequence[Task], split: Split) -> Iterator[Example]:
    streams = [iter(task.source(split)) for task in tasks]
    while streams:
        example = next(streams[0], None)
        streams = streams[1:] if example is None else [*streams[1:], streams[0]]
        if example is not None:
            yield example

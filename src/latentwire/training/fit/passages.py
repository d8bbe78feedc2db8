"""What a wire is trained on: contexts, each with several questions, as the tokens of every reader."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice

from transformers import PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Example
from latentwire.tasks import resolve
from latentwire.tasks.base import Split, Task
from latentwire.tasks.files import digest
from latentwire.tasks.world.sums import WorldTier, training_passage
from latentwire.training.fit.config import PassageData, TaskPassages, TextPassages, WorldPassages
from latentwire.training.fit.texts import pieces

PER_JOB = 500
"""Passages that one process makes at a time; fewer are made here."""

HELD_OUT = 20
"""One group in so many is kept for evaluation."""

Pair = tuple[list[int], list[int]]
"""Token ids of what stands behind a context, and of the answer with its end-of-sequence token."""


@dataclass(frozen=True)
class Tokenizing:
    """What a prompt format needs of a reader, without its weights: it can go to another process."""

    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat
    name: str
    eos_ids: frozenset[int]

    @classmethod
    def of(cls, lm: LM) -> Tokenizing:
        return cls(lm.tokenizer, lm.format, lm.name, lm.eos_ids)

    def pairs(self, examples: Sequence[Example]) -> list[Pair]:
        """Of examples that share a context: answers have the tokens that they are scored by in an evaluation.

        Raises:
            UserError: the context changes the tokens of the first answer; all are taken behind the question alone,
                which costs a third of reading the context again for each.
        """
        answers = [self._answer(replace(each, context="")) for each in examples]
        if self._answer(examples[0]) != answers[0]:
            raise UserError(
                f"data: the tokenizer of {self.name} cuts the answer to {examples[0].id} in another way behind "
                "its context than behind the question alone, expected the same tokens."
            )
        ends = sorted(self.eos_ids)[:1]
        behind = (self.format.behind(each.question, self) for each in examples)
        return [(question, [*answer, *ends]) for question, answer in zip(behind, answers, strict=True)]

    def _answer(self, example: Example) -> list[int]:
        return self.format.encode(replace(example, choices=()), self)[1][0]


@dataclass(frozen=True)
class Passage:
    """One context. group: what it shares with others. text: by reader, the ids of it and of what stands before.
    pairs: by reader, its questions; the same questions in the same order for all readers."""

    group: str
    context: str
    text: dict[str, list[int]]
    pairs: dict[str, list[Pair]]

    @property
    def asked(self) -> int:
        """How many questions there are."""
        return len(next(iter(self.pairs.values())))


def passages(data: PassageData, readers: Mapping[str, LM], split: Split, count: int) -> list[Passage]:
    """The first `count` passages, always the same ones.

    Raises:
        UserError: data that cannot be read, or without contexts and answers in words.
    """
    tokenizing = {name: Tokenizing.of(lm) for name, lm in readers.items()}
    if isinstance(data, TextPassages):
        return [_told(tokenizing, *piece) for piece in pieces(data, split, count)]
    if isinstance(data, TaskPassages) or split != "train":
        return [_tokenize(tokenizing, examples) for examples in islice(_of_task(data, split), count)]
    jobs = [range(at, min(at + PER_JOB, count)) for at in range(0, count, PER_JOB)]
    make = partial(_of_world, data.tiers, tokenizing)
    if len(jobs) == 1:
        return make(jobs[0])
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [each for part in pool.map(make, jobs) for each in part]


def _of_world(tiers: Sequence[WorldTier], tokenizing: Mapping[str, Tokenizing], numbers: range) -> list[Passage]:
    return [_tokenize(tokenizing, training_passage(tiers, number)) for number in numbers]


def _of_task(data: WorldPassages | TaskPassages, split: Split) -> Iterator[list[Example]]:
    """Examples that share a context, the tasks taking turns."""
    named, path = ([data.task], data.data) if isinstance(data, TaskPassages) else (list(data.tiers), None)
    tasks = resolve(named, path)
    if isinstance(data, TaskPassages) and path is None and not all(task.apart for task in tasks):
        raise UserError(
            f"data: found {data.task} without a file, whose only examples are those it is evaluated on; expected "
            "data, a file to train on."
        )
    examples_of = partial(kept, split) if isinstance(data, TaskPassages) else lambda task: task.source(split)
    streams = [groupby(examples_of(task), key=lambda e: (e.group, e.context)) for task in tasks]
    while streams:
        for stream in list(streams):
            found = next(stream, None)
            if found is None:
                streams.remove(stream)
                continue
            examples = list(found[1])
            if not examples[0].answers or not examples[0].context:
                raise UserError(f"data: {examples[0].id} has no context or no answer in words, expected both.")
            yield examples


def kept(split: Split, task: Task) -> Iterator[Example]:
    """A task's examples of a split, where these lie apart. Else one group in `HELD_OUT`, by hash, is kept for
    evaluation, whole."""
    if task.apart:
        yield from task.source(split)
        return
    for example in task.source("test"):
        kept = int(digest(example.group)[:8], 16) % HELD_OUT == 0
        if kept == (split != "train"):
            yield example


def _tokenize(tokenizing: Mapping[str, Tokenizing], examples: Sequence[Example]) -> Passage:
    context = examples[0].context
    return Passage(
        group=examples[0].group,
        context=context,
        text={name: each.format.before(context, each) for name, each in tokenizing.items()},
        pairs={name: each.pairs(examples) for name, each in tokenizing.items()},
    )


def _told(tokenizing: Mapping[str, Tokenizing], group: str, context: str, rest: str) -> Passage:
    """A passage whose one question is the first token of what follows, and whose answer is all the others."""
    told = {
        name: each.tokenizer(f" {rest}", add_special_tokens=False)["input_ids"]
        for name, each in tokenizing.items()
    }
    return Passage(
        group=group,
        context=context,
        text={name: each.format.before(context, each) for name, each in tokenizing.items()},
        pairs={name: [(list(ids[:1]), list(ids[1:]))] for name, ids in told.items()},
    )

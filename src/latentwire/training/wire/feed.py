"""The data of each training step: a function of the seed and the step, prepared while the step before runs."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache, reduce
from threading import Lock

import torch

from latentwire.lm.prefix import STEADY, rounded
from latentwire.training.sharing import Spare, parted
from latentwire.training.wire.part import Part, collate, partners
from latentwire.training.wire.passage import Passage
from latentwire.training.wire.wire_training_config import WireTraining

SEEN = 200
"""Steps whose sizes are looked at before the first one."""
WINDOW = 4096
"""Passages of similar length are looked for among this many neighbours of a shuffled epoch."""
CUT = "text, questions"
"""What passages are sorted by before they are cut into steps: no training goes on with steps cut otherwise."""


Sizes = tuple[tuple[int, int], ...]
"""By reader, the columns of a text and of its questions."""


class Feed:
    """Passages in the order of a training, each step shared out among processes.

    Args:
        identity: a digest of the data and of the tokenizers.
        after: as `collate` takes it.
        ahead: called in another thread with the contexts of a step before it runs.

    Attributes:
        passes: how many parts a process's share of a step is split into, so that each fits into memory.
    """

    def __init__(
        self,
        settings: WireTraining,
        passages: Sequence[Passage],
        devices: Mapping[str, torch.device],
        identity: str,
        after: Mapping[str, list[int]] | None = None,
        ahead: Callable[[Sequence[str]], None] = lambda contexts: None,
    ) -> None:
        self._settings, self._passages, self._devices, self._after = settings, passages, devices, after
        self._identity, self._notify = identity, ahead
        self._epoch = lru_cache(maxsize=2)(self._batches)
        self._ends: list[int] = []
        self._counting = Lock()
        self._ahead: dict[tuple[int, int, int], Future[list[Part | Spare]]] = {}
        self._helper = ThreadPoolExecutor(1)
        self.passes = settings.accumulation

    def parts(self, step: int, process: int, processes: int) -> list[Part | Spare]:
        """A process's parts of a step; those of the next step are prepared meanwhile."""
        ready = self._ahead.pop((step, process, processes), None)
        if step + 1 < self._settings.steps:
            following = (step + 1, process, processes)
            self._ahead = {following: self._helper.submit(self._parts, *following)}
        return self._parts(step, process, processes) if ready is None else ready.result()

    def split_further(self) -> bool:
        """Split every step into twice as many parts from now on; False if a part is a single passage already."""
        if self.passes >= self.largest:
            return False
        self.passes *= 2
        self._ahead.clear()
        return True

    @property
    def largest(self) -> int:
        """How many passages the largest step has."""
        if self._settings.step_tokens is None:
            return self._settings.passages
        return max(len(batch) for batch in self._epoch(0))

    @cached_property
    def columns(self) -> int:
        """The most columns of a step among its first ones, padding included: rows times the longest."""
        steps = (self._numbers(step) for step in range(min(self._settings.steps, SEEN)))
        return max(map(self._columns, steps))

    def probe(self, count: int = 2) -> tuple[Part, int]:
        """A part of the `count` longest passages, and its columns."""
        longest = sorted(range(len(self._passages)), key=lambda number: self._columns([number]))[-count:]
        part = self._part(0, [(number, self._questions(0, number)) for number in longest], {})
        return replace(part, textual=False), self._columns(longest)

    def _parts(self, step: int, process: int, processes: int) -> list[Part | Spare]:
        asked = [(number, self._questions(step, number)) for number in self._numbers(step)]
        lengths = {
            name: [len(self._passages[number].pairs[name][n][1]) for number, chosen in asked for n in chosen]
            for name in self._devices
        }
        # In the whole step: how it is shared out among processes and parts must not change what is learned.
        whole = [number for number, _ in asked]
        partner = dict(zip(whole, partners([self._passages[number].group for number in whole]), strict=True))
        others = {number: whole[at] for number, at in partner.items()}
        mine = asked[process::processes]
        self._notify([self._passages[number].context for number, _ in mine])
        if self.passes > 1:  # passages of one length share a part, which leaves little padding
            mine.sort(key=lambda passage: self._longest(passage[0]))
        return [
            self._part(step, some, lengths, others)
            if some
            else Spare(self._part(step, asked[:1], lengths, others))
            for some in parted(mine, -(-len(asked) // processes), self.passes)
        ]

    def _questions(self, step: int, number: int) -> list[int]:
        draw = random.Random(f"{self._settings.seed}/questions/{step}/{number}")
        count = self._passages[number].asked
        return draw.sample(range(count), min(count, self._settings.questions))

    def _part(
        self,
        step: int,
        asked: list[tuple[int, list[int]]],
        lengths: dict[str, list[int]],
        others: Mapping[int, int] | None = None,
    ) -> Part:
        settings, text = self._settings, self._settings.text_steps
        partners = [] if others is None else [others[number] for number, _ in asked]
        return collate(
            [self._passages[number] for number, _ in asked],
            [chosen for _, chosen in asked],
            self._devices,
            [self._name(step, number) for number, _ in asked],
            after=self._after,
            lengths=lengths,
            keep=settings.keep_prob.at(step / settings.steps),
            textual=text is not None and random.Random(f"{settings.seed}/text/{step}").random() < text.at(step),
            others=[(self._passages[number].context, self._name(step, number)) for number in partners] or None,
        )

    def _name(self, step: int, number: int) -> str:
        """What the random draws of a passage in a step are a function of."""
        return f"{self._settings.seed}/{step}/{number}"

    def _numbers(self, step: int) -> list[int]:
        """The passages of a step: every pass over all of them is shuffled anew."""
        if self._settings.step_tokens is not None:
            with self._counting:  # the thread that prepares the next step asks too
                while not self._ends or self._ends[-1] <= step:
                    done = self._ends[-1] if self._ends else 0
                    self._ends.append(done + len(self._epoch(len(self._ends))))
            epoch = bisect_right(self._ends, step)
            return self._epoch(epoch)[step - (self._ends[epoch - 1] if epoch else 0)]
        count, size = len(self._passages), self._settings.passages
        places = (divmod(at, count) for at in range(step * size, (step + 1) * size))
        return [self._epoch(epoch)[0][place] for epoch, place in places]

    def _batches(self, epoch: int) -> list[list[int]]:
        """One pass over all passages, in batches of `step_tokens`; without it a single batch, cut by the steps."""
        order = list(range(len(self._passages)))
        draw = random.Random(f"{self._settings.seed}/order/{epoch}")
        draw.shuffle(order)
        limit = self._settings.step_tokens
        if limit is None:
            return [order]
        batches = []
        for at in range(0, len(order), WINDOW):
            batch: list[int] = []
            widest: Sizes = ()
            # Texts of one length, then questions of one length: both are padded to the longest of the batch.
            for number in sorted(order[at : at + WINDOW], key=self._longest):
                wider = _wider(widest, self._sizes[number])
                if batch and (len(batch) + 1) * _width(wider) > limit:
                    batches.append(batch)
                    batch, wider = [], self._sizes[number]
                batch.append(number)
                widest = wider
            batches.append(batch)
        draw.shuffle(batches)
        return batches

    def _columns(self, numbers: Sequence[int]) -> int:
        """The columns that passages take together, padding included."""
        return len(numbers) * _width(reduce(_wider, (self._sizes[number] for number in numbers)))

    def _longest(self, number: int) -> tuple[int, int]:
        """The columns of a passage's text and of its questions, for the reader with the most."""
        texts, asked = zip(*self._sizes[number], strict=True)
        return max(texts), max(asked)

    @cached_property
    def _sizes(self) -> list[Sizes]:
        """For each passage and reader the columns of the text, and of the most questions of a step."""
        count = self._settings.questions
        return [
            tuple(
                (
                    rounded(len(ids), STEADY),
                    rounded(sum(sorted(len(q) + len(a) for q, a in passage.pairs[name])[-count:]), STEADY),
                )
                for name, ids in passage.text.items()
            )
            for passage in self._passages
        ]

    def tokens(self, step: int) -> int:
        """How many tokens of text a step reads, without padding, in all processes."""
        numbers = self._numbers(step)
        return sum(len(ids) for number in numbers for ids in self._passages[number].text.values())

    @cached_property
    def sha256(self) -> str:
        """A digest of the data, the tokenizers and of what cuts them into steps."""
        settings = self._settings
        cut: tuple[object, ...] = (len(self._passages), settings.passages, settings.questions)
        cut = (*cut, settings.step_tokens, settings.seed)
        if settings.step_tokens is not None:
            cut = (*cut, CUT)
        return hashlib.sha256(repr((self._identity, cut)).encode()).hexdigest()


def _wider(sizes: Sizes, others: Sizes) -> Sizes:
    """What passages of these sizes are padded to together."""
    if not sizes:
        return others
    return tuple((max(a[0], b[0]), max(a[1], b[1])) for a, b in zip(sizes, others, strict=True))


def _width(sizes: Sizes) -> int:
    """The columns of a row."""
    return max(text + asked for text, asked in sizes)

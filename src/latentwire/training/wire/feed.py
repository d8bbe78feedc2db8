"""The data of each training step: a function of the seed and the step, prepared while the step before runs."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
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
        return max(len(numbers) * max(map(self._width, numbers)) for numbers in steps)

    def probe(self, count: int = 2) -> tuple[Part, int]:
        """A part of the `count` longest passages, and its columns."""
        longest = sorted(range(len(self._passages)), key=self._width)[-count:]
        part = self._part(0, [(number, self._questions(0, number)) for number in longest], {})
        return replace(part, textual=False), len(longest) * max(map(self._width, longest))

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
            mine.sort(key=lambda passage: self._width(passage[0]))
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
            for number in sorted(order[at : at + WINDOW], key=self._width):
                # Ascending widths: the newest one is what all are padded to.
                if batch and (len(batch) + 1) * self._width(number) > limit:
                    batches.append(batch)
                    batch = []
                batch.append(number)
            batches.append(batch)
        draw.shuffle(batches)
        return batches

    def _width(self, number: int) -> int:
        """The columns that a passage takes, padding included: of its text, with the most questions of a step."""
        return self._widths[number]

    @cached_property
    def _widths(self) -> list[int]:
        count = self._settings.questions
        return [
            max(
                rounded(len(ids), STEADY) + sum(sorted(len(q) + len(a) for q, a in passage.pairs[name])[-count:])
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
        cut = (len(self._passages), settings.passages, settings.questions, settings.step_tokens, settings.seed)
        return hashlib.sha256(repr((self._identity, cut)).encode()).hexdigest()

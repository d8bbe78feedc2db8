"""What each step of a fit reads: a function of the seed and the step, made while the step before is computed."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache

import torch

from latentwire.errors import UserError
from latentwire.training.wire.config import Fit
from latentwire.training.wire.part import Part
from latentwire.training.wire.passages import Passage
from latentwire.training.wire.step import collate


class Feed:
    """Passages in the order of a training, a step's share for each process.

    Args:
        after: as `collate`. ahead: told the contexts of a step before it, in another thread.
    """

    def __init__(
        self,
        settings: Fit,
        found: Sequence[Passage],
        devices: Mapping[str, torch.device],
        after: Mapping[str, list[int]] | None = None,
        ahead: Callable[[Sequence[str]], None] = lambda contexts: None,
    ) -> None:
        self._settings, self._passages, self._devices, self._after = settings, found, devices, after
        self._tell = ahead
        self._order = lru_cache(maxsize=2)(self._shuffled)
        self._ahead: dict[tuple[int, int, int], Future[list[Part]]] = {}
        self._helper = ThreadPoolExecutor(1)

    def parts(self, step: int, process: int, processes: int) -> list[Part]:
        """A step's parts; those of the next one are made meanwhile."""
        if self._settings.passages % processes:
            raise UserError(
                f"passages: found {self._settings.passages}, expected a multiple of the {processes} processes."
            )
        ready = self._ahead.pop((step, process, processes), None)
        if step + 1 < self._settings.steps:
            following = (step + 1, process, processes)
            self._ahead = {following: self._helper.submit(self._parts, *following)}
        return self._parts(step, process, processes) if ready is None else ready.result()

    def _parts(self, step: int, process: int, processes: int) -> list[Part]:
        asked = [(number, self._questions(step, number)) for number in self._numbers(step)]
        lengths = {
            name: [len(self._passages[number].pairs[name][n][1]) for number, chosen in asked for n in chosen]
            for name in self._devices
        }
        mine = asked[process::processes]
        self._tell([self._passages[number].context for number, _ in mine])
        size = -(-len(mine) // self._settings.accumulation)
        return [self._part(step, mine[at : at + size], lengths) for at in range(0, len(mine), size)]

    def _questions(self, step: int, number: int) -> list[int]:
        draw = random.Random(f"{self._settings.seed}/questions/{step}/{number}")
        count = self._passages[number].asked
        return draw.sample(range(count), min(count, self._settings.questions))

    def _part(self, step: int, asked: list[tuple[int, list[int]]], lengths: dict[str, list[int]]) -> Part:
        settings, text = self._settings, self._settings.text_steps
        return collate(
            [self._passages[number] for number, _ in asked],
            [chosen for _, chosen in asked],
            self._devices,
            [f"{settings.seed}/{step}/{number}" for number, _ in asked],
            after=self._after,
            lengths=lengths,
            keep=settings.keep_prob.at(step / settings.steps),
            textual=text is not None and random.Random(f"{settings.seed}/text/{step}").random() < text.at(step),
        )

    def _numbers(self, step: int) -> list[int]:
        """The contexts of a step: every pass over them is shuffled anew."""
        count, size = len(self._passages), self._settings.passages
        found: list[int] = []
        for at in range(step * size, (step + 1) * size):
            epoch, place = divmod(at, count)
            found.append(self._order(epoch)[place])
        return found

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._passages)))
        random.Random(f"{self._settings.seed}/order/{epoch}").shuffle(order)
        return order

    def tokens(self, step: int) -> int:
        numbers = self._numbers(step)
        return sum(len(ids) for number in numbers for ids in self._passages[number].text.values())

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256(repr((self._settings.passages, self._settings.questions)).encode())
        for passage in self._passages:
            for name, ids in passage.text.items():
                digest.update(array("q", ids).tobytes())
                for question, answer in passage.pairs[name]:
                    digest.update(array("q", [*question, -1, *answer, -1]).tobytes())
        return digest.hexdigest()

"""Sums: word problems of two to four steps, answered with a worked solution."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split, Task
from latentwire.tasks.world.names import draw_names
from latentwire.tasks.world.tiers import Tier, ask_all, example_id, indices
from latentwire.tasks.world.world_passages import OPENING

WorldTier = Tier | Literal["sums"]
STEPS = (2, 3, 4)
LARGEST = 99
THINGS = ("apples", "coins", "books", "stones", "shells", "cards", "nails", "eggs")
GAINS = ("{who} buys {n} more.", "{who} finds {n} more.", "{other} gives {n} to {who}.")
LOSSES = ("{who} sells {n}.", "{who} loses {n}.", "{who} gives {n} to {other}.")
DOUBLINGS = ("{who} then doubles the number.",)


@dataclass(frozen=True)
class Problem:
    """A start and the steps after it: `("+", 7)`, `("-", 3)` or `("*", 2)`."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def split(self) -> Split:
        """The split that owns these numbers, whoever the story is about: 80 % train, 10 % the others."""
        bucket = zlib.crc32(repr(self).encode()) % 10
        return "train" if bucket < 8 else "validation" if bucket == 8 else "test"

    @property
    def solution(self) -> str:
        """Every step with its result, then `#### N`."""
        total, worked = self.start, []
        for sign, number in self.steps:
            before = total
            total = {"+": before + number, "-": before - number, "*": before * number}[sign]
            worked.append(f"{before} {sign} {number} = {total}")
        return ", ".join(worked) + f" #### {total}"


def draw_problem(random_: random.Random, split: Split, steps: Sequence[int] = STEPS) -> Problem:
    """A problem of the split whose totals stay between 1 and 99; `steps` are the allowed lengths."""
    length = random_.choice(steps)
    while True:
        start = total = random_.randint(5, 60)
        done: list[tuple[str, int]] = []
        for _ in range(length):
            signs = ["+"] * (total <= LARGEST - 2) + ["-"] * (total > 5) + ["*"] * (total <= LARGEST // 2)
            sign = random_.choice(signs)
            if sign == "+":
                number = random_.randint(2, min(40, LARGEST - total))
                total += number
            elif sign == "-":
                number = random_.randint(2, min(40, total - 1))
                total -= number
            else:
                number = 2
                total *= 2
            done.append((sign, number))
        problem = Problem(start, tuple(done))
        if problem.split == split:
            return problem


def draw_story(random_: random.Random, split: Split, problem: Problem) -> tuple[str, str]:
    """A story that states the problem, with someone else's number in it, and its question."""
    who, other = draw_names(random_, split, 2)
    things = random_.choice(THINGS)
    opening = [f"{who} has {problem.start} {things}.", f"{other} has {random_.randint(5, 60)} {things}."]
    random_.shuffle(opening)
    sentences = {"+": GAINS, "-": LOSSES, "*": DOUBLINGS}
    events = [random_.choice(sentences[sign]).format(who=who, other=other, n=n) for sign, n in problem.steps]
    return " ".join([OPENING, *opening, *events]), f"How many {things} does {who} have now?"


def _sum(split: Split, index: int) -> Example:
    random_ = random.Random(f"world/sums/{split}/{index}")
    problem = draw_problem(random_, split)
    story, question = draw_story(random_, split, problem)
    id_ = example_id("sums", split, index)
    return Example(id=id_, group=id_, context=story, question=question, answers=(problem.solution,))


def _sums(split: Split) -> Iterator[Example]:
    for index in indices("sums", split):
        yield _sum(split, index)


def sums_task() -> Task:
    """Word problems; no problem's numbers occur in two splits."""
    return Task(name="sums", answer="solution", source=_sums, max_new_tokens=96, apart=True)


def training_passage(tiers: Sequence[WorldTier], index: int) -> list[Example]:
    """Training passage number `index`: `ask_all` of the reading tiers, or one problem of the train split.

    Where `sums` is among others, it takes its turn as one of them.
    """
    reading = [tier for tier in tiers if tier != "sums"]
    if "sums" in tiers and (not reading or index % len(tiers) == 0):
        return [_sum("train", index)]
    return ask_all(reading, index)

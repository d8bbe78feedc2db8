"""A part of a training step: some contexts, and what is asked about them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from latentwire.lm.scoring.questions import Questions, Shared


@dataclass(frozen=True, eq=False)
class Part:
    """B contexts and what is asked about them.

    groups: of the contexts. other: for each another one of another group. questions, plain, text: by reader; see
    `Evidence`. names: what each context's random draws follow. keep: the share of latents that is delivered.
    textual: the readers read the text instead. lengths: by reader, tokens of every answer in the whole step, of
    which this part may be a share.
    """

    contexts: list[str]
    groups: list[str]
    other: list[int]
    questions: dict[str, Questions]
    plain: dict[str, Questions]
    text: dict[str, Shared]
    names: list[str]
    lengths: dict[str, list[int]]
    keep: float = 1.0
    textual: bool = False

    @property
    def labels(self) -> int:
        """How many answer tokens are learned, those of all readers."""
        return sum(len(each.place) for each in self.questions.values())

    def draw(self, name: str, row: int) -> random.Random:
        """A stream of draws for a context: a function of seed, step, context and name, not of the batch."""
        return random.Random(f"{self.names[row]}/{name}")

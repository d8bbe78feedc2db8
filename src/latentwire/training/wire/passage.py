"""One context as the tokens of every reader."""

from __future__ import annotations

from dataclasses import dataclass, field

from latentwire.training.wire.asking import Pair


@dataclass(frozen=True)
class Passage:
    """One context with its questions.

    Attributes:
        group: what it shares with others, such as an article.
        context: its text; the prompt where whole prompts are carried.
        text: by reader, token ids of the context and of what stands before it.
        pairs: by reader, its questions and answers; the same ones in the same order for all readers.
        after_latents: by reader, what is asked after latents, where that is something else.
    """

    group: str
    context: str
    text: dict[str, list[int]]
    pairs: dict[str, list[Pair]]
    after_latents: dict[str, list[list[int]]] = field(default_factory=dict)

    def asks(self, reader: str, number: int) -> list[int]:
        """Token ids of what a reader is asked after latents."""
        asked = self.after_latents.get(reader)
        return self.pairs[reader][number][0] if asked is None else asked[number]

    @property
    def asked(self) -> int:
        """How many questions there are."""
        return len(next(iter(self.pairs.values())))

"""A text that is being generated: its tokens so far, and whether it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from latentwire.lm.decoding.choose import Decoding, Generated


class TextEnds(Protocol):
    """What an open text needs of a model; `LM` implements it."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class OpenText:
    """Takes tokens in portions of any size; the result does not depend on the portions.

    Args:
        position: of the first token after the prefix.
    """

    def __init__(self, lm: TextEnds, decoding: Decoding, seed: int, position: int) -> None:
        self._lm, self._decoding, self._ends = lm, decoding, lm.eos_ids
        self.position = position
        self.draw = torch.Generator().manual_seed(seed)
        self.ids: list[int] = []
        self.ended: Literal["eos", "stop", "length"] | None = None
        self._cut: str | None = None

    @property
    def held(self) -> bool:
        """Whether it must not end yet."""
        return len(self.ids) < self._decoding.min_new_tokens

    @property
    def room(self) -> int:
        """How many more tokens it may take."""
        return self._decoding.max_new_tokens - len(self.ids)

    def take(self, tokens: Sequence[int]) -> None:
        """Append the next tokens; those after the end are dropped."""
        known = len(self.ids)
        for token in tokens:
            if token in self._ends:
                self.ended = "eos"
                break
            self.ids.append(token)
            if len(self.ids) >= self._decoding.max_new_tokens:
                self.ended = "length"
                break
        if self._decoding.stop and len(self.ids) > known:
            self._look_for_stops(known)

    def result(self) -> Generated:
        text = self._lm.decode(self.ids) if self._cut is None else self._cut
        return Generated(text, tuple(self.ids), self.ended or "length")

    def _look_for_stops(self, known: int) -> None:
        """End at the first token that completes a stop string.

        Decoding the whole text for every token would cost the square of its length, so the tail in which a stop
        string could have begun is decoded first.
        """
        stops = self._decoding.stop
        longest, start = max(map(len, stops)), known
        while start > 0 and len(self._lm.decode(self.ids[start:known])) <= longest:
            start = max(0, start - 8)
        tail = self._lm.decode(self.ids[start:])
        # Some tokenizers drop a space before the first word, so leading spaces are not compared.
        if not any(stop.lstrip() in tail for stop in stops):
            return
        for count in range(known + 1, len(self.ids) + 1):
            text = self._lm.decode(self.ids[:count])
            if cuts := [at for stop in stops if (at := text.find(stop)) >= 0]:
                self.ids, self._cut, self.ended = self.ids[:count], text[: min(cuts)], "stop"
                return

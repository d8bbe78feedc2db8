"""Scoring and generating over a wire whose delivery changes by decoding step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from latentwire.lm.decoding import Decoding, Generated
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefilled
from latentwire.lm.prompts import Prompt
from latentwire.lm.scoring.continuations import Score
from latentwire.wires.wire import Message, Wire


@dataclass(frozen=True)
class Stepwise:
    """B prompts over a wire. At a step where the delivery changes, the prompt and what was written are read again.

    Latents are few, so that reading them again costs little. Over a wire that never changes this is `lm.score` and
    `lm.generate`.

    Attributes:
        message: what the wire sent for the prompts.
    """

    wire: Wire
    message: Message
    prompts: Sequence[Prompt]
    lm: LM

    def score(self, prefilled: Prefilled, continuations: Sequence[Sequence[list[int]]]) -> list[list[Score]]:
        """As `LM.score`; each token is predicted from what the wire delivers at its step."""
        longest = max(len(ids) for row in continuations for ids in row)
        starts = [0, *(step for step in self.wire.delivery_changes if step < longest)]
        cut = starts[1] if len(starts) > 1 else longest
        first = self.lm.score(prefilled, [[ids[:cut] for ids in row] for row in continuations])
        flat = [(row, ids) for row, group in enumerate(continuations) for ids in group]
        totals = [score for group in first for score in group]
        for start, stop in pairwise([*starts[1:], longest]):
            left = [(at, row, ids) for at, (row, ids) in enumerate(flat) if len(ids) > start]
            again = self._read([row for _, row, _ in left], start, [ids[:start] for _, _, ids in left])
            scores = self.lm.score(again, [[ids[start:stop]] for _, _, ids in left])
            for (at, _, _), (more,) in zip(left, scores, strict=True):
                old = totals[at]
                totals[at] = Score(
                    old.logprob + more.logprob, old.greedy and more.greedy, old.tokens + more.tokens
                )
        scored = iter(totals)
        return [[next(scored) for _ in group] for group in continuations]

    def generate(self, prefilled: Prefilled, how: Decoding, seeds: Sequence[int] | None = None) -> list[Generated]:
        """As `LM.generate`, greedy or sampled.

        Args:
            seeds: one per row, for sampling; None takes the rows' numbers.
        """
        seeds = range(len(self.prompts)) if seeds is None else seeds
        starts = [0, *(step for step in self.wire.delivery_changes if step < how.max_new_tokens)]
        rows = list(range(len(self.prompts)))
        written: list[list[int]] = [[] for _ in rows]
        results: dict[int, Generated] = {}
        for start, stop in pairwise([*starts, how.max_new_tokens]):
            if start:
                prefilled = self._read(rows, start, [written[row] for row in rows])
            part = _part(how, start, stop)
            outputs = self.lm.generate(prefilled, part, [seeds[row] + 1_000_003 * start for row in rows])
            for row, output in zip(rows, outputs, strict=True):
                written[row] += output.ids
                results[row] = self._joined(written[row], output, how) if start else output
            rows = [row for row in rows if results[row].ended == "length"]
            if not rows:
                break
        return [results[row] for row in range(len(self.prompts))]

    def _read(self, rows: list[int], step: int, written: Sequence[Sequence[int]]) -> Prefilled:
        prompts = [self.prompts[row] for row in rows]
        return self.lm.prefill(self.wire.deliver_again(self.message, rows, prompts, self.lm, step, written))

    def _joined(self, ids: Sequence[int], last: Generated, how: Decoding) -> Generated:
        """A text of several parts; a stop string may run across two of them."""
        text = self.lm.decode(list(ids))
        ends = [at for stop in how.stop if (at := text.find(stop)) >= 0]
        return (
            Generated(text[: min(ends)], tuple(ids), "stop") if ends else replace(last, text=text, ids=tuple(ids))
        )


def _sum(one: Score, two: Score) -> Score:
    return Score(one.logprob + two.logprob, one.greedy and two.greedy, one.tokens + two.tokens)


def _part(how: Decoding, start: int, stop: int) -> Decoding:
    """The settings of the steps from `start` to `stop`."""
    least = min(max(how.min_new_tokens - start, 0), stop - start)
    part = replace(how, max_new_tokens=stop - start, min_new_tokens=least)
    if not start:
        return part
    left = [(token, None if steps is None else steps - start) for token, steps in how.suppress_tokens]
    bans = tuple((token, steps) for token, steps in left if steps is None or steps > 0)
    return replace(part, begin_suppress_tokens=(), suppress_tokens=bans, first_temperature=None, first_top_p=None)

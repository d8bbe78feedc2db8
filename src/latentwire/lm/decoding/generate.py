"""Generates texts: from one prefill, or from any number of prefixes that share a few slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.decoding.choose import Bans, Decoding, Generated, choose
from latentwire.lm.decoding.engine import Engine, Model
from latentwire.lm.decoding.open_text import OpenText, TextEnds
from latentwire.lm.decoding.slots import HISTORY, seen_later
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.prefix import Prefilled, Prefix

Refill = Callable[[int], tuple[Prefilled, list[OpenText]] | None]
"""Given the number of free slots: a prefill of at most that many rows with their texts; None at the end."""


class Generator(Model, TextEnds, Protocol):
    """What generating needs of a model; `LM` is it."""

    name: str
    tokenizer: PreTrainedTokenizerBase

    @property
    def engine(self) -> Engine: ...

    @property
    def max_positions(self) -> int: ...

    def prefill(self, prefix: Prefix) -> Prefilled: ...


@torch.no_grad()
def generate(
    lm: Generator, prefilled: Prefilled, decoding: Decoding, seeds: Sequence[int] | None = None
) -> list[Generated]:
    """Continue every row until it ends.

    Args:
        seeds: one per row, needed for sampling; a row's tokens depend on its own seed alone, so
            neither the batch nor its order changes them.

    Returns:
        One `Generated` per row; `prefilled` is left unchanged.
    """
    if seeds is None:
        seeds = range(prefilled.rows)
    if len(seeds) != prefilled.rows:
        raise ValueError(f"seeds: found {len(seeds)}, expected one for each of {prefilled.rows} rows")
    texts = _texts(lm, decoding, seeds, prefilled)
    whole, rows = iter([(prefilled, texts)]), prefilled.rows
    _write(lm, decoding, rows, lambda free: next(whole, None) if free == rows else None, alone=True)
    return [text.result() for text in texts]


@torch.no_grad()
def generate_all(
    lm: Generator,
    prefixes: Iterable[Prefix],
    decoding: Decoding,
    seeds: Iterable[int] | None = None,
    rows: int = 32,
) -> list[Generated]:
    """Continue every row of every prefix, `rows` at a time: when one text ends, the next begins.

    Args:
        prefixes: of any kinds and lengths, taken one by one as slots become free.
        seeds: one per row of all prefixes; 0, 1, 2, ... if None.

    Returns:
        One `Generated` per row, in the order of the prefixes: what `generate` gives for each alone.
    """
    if rows < 1:
        raise ValueError(f"rows: found {rows}, expected >= 1")
    waiting = _rows_of(prefixes)
    numbers = iter(count() if seeds is None else seeds)
    texts: list[OpenText] = []
    kept: list[Prefix] = []

    def refill(free: int) -> tuple[Prefilled, list[OpenText]] | None:
        taken = kept[:]
        kept.clear()
        while len(taken) < free and (prefix := next(waiting, None)) is not None:
            if taken and not taken[0].joins(prefix):
                kept.append(prefix)
                break
            taken.append(prefix)
        if not taken:
            return None
        prefilled = lm.prefill(Prefix.join(taken))
        mine = []
        for _ in taken:
            if (seed := next(numbers, None)) is None:
                raise ValueError(f"seeds: found {len(texts)}, expected one for each row of the prefixes")
            mine.append(seed)
        new = _texts(lm, decoding, mine, prefilled)
        texts.extend(new)
        return prefilled, new

    _write(lm, decoding, rows, refill)
    return [text.result() for text in texts]


def _texts(lm: TextEnds, decoding: Decoding, seeds: Sequence[int], prefilled: Prefilled) -> list[OpenText]:
    positions = prefilled.next_position.tolist()
    return [OpenText(lm, decoding, seed, position) for seed, position in zip(seeds, positions, strict=True)]


def _rows_of(prefixes: Iterable[Prefix]) -> Iterator[Prefix]:
    for prefix in prefixes:
        for row in range(prefix.columns.positions.shape[0]):
            yield prefix.select(torch.tensor([row], device=prefix.columns.positions.device)).trimmed()


def _write(lm: Generator, decoding: Decoding, rows: int, refill: Refill, *, alone: bool = False) -> None:
    """Generate in `rows` slots until `refill` returns None and all texts have ended.

    Args:
        alone: `refill` gives all texts at once, so that slots that are free need not be kept.
    """
    engine = lm.engine
    batch = _Batch(lm, engine, decoding, rows, shrinks=alone and engine.mode == "plain")
    with evaluating(lm.model):
        try:
            more = True
            while True:
                # Prefilling is cheaper for several prompts at once, so a few slots may wait for each other.
                while more and (free := batch.free) and (len(free) * 4 >= rows):
                    new = refill(len(free))
                    more = new is not None
                    if new is not None:
                        batch.admit(*new)
                if not batch.live:
                    return
                batch.advance()
        except torch.OutOfMemoryError:
            engine.release()  # slots may be half made, and whoever tries again with less needs the room
            raise
        finally:
            engine.close()


class _Batch:
    """The texts being generated, each in a slot.

    Args:
        shrinks: slots that are free are given up once they are a quarter of all; a step's work follows the slots.
    """

    def __init__(self, lm: Generator, engine: Engine, decoding: Decoding, rows: int, *, shrinks: bool) -> None:
        self._lm, self._engine, self._decoding, self._rows = lm, engine, decoding, rows
        self._shrinks = shrinks
        self._texts: dict[int, OpenText] = {}
        self._lengths: dict[int, int] = {}
        self._open = False
        self._bans = Bans.of(lm, decoding)
        # The device chooses greedily and knows no bans; the first token is always chosen here.
        self._greedy = decoding.temperature == 0 and self._bans.last <= 1

    @property
    def free(self) -> list[int]:
        return [slot for slot in range(self._rows) if slot not in self._texts]

    @property
    def live(self) -> bool:
        return bool(self._texts)

    def admit(self, prefilled: Prefilled, texts: Sequence[OpenText]) -> None:
        """Choose the first token of every text and give a slot to those that have not ended."""
        first = choose(
            prefilled.logits,
            self._decoding,
            [text.draw for text in texts],
            first=True,
            held=[text.held for text in texts],
            eos_ids=self._lm.eos_ids,
            banned=[self._bans.at(0)] * len(texts),
        )
        for text, token in zip(texts, first.tolist(), strict=True):
            text.take([token])
        unfinished = [row for row, text in enumerate(texts) if not text.ended]
        if not unfinished:
            return
        for row in unfinished:
            self._check_room(texts[row])
        counts = seen_later(prefilled).sum(1).tolist()
        columns = max(counts[row] + texts[row].room for row in unfinished)
        if self._open:
            self._engine.grow(columns)
        else:
            self._rows = len(unfinished) if self._shrinks else self._rows
            self._engine.open(prefilled, self._rows, columns)
            self._open = True
        slots = self.free[: len(unfinished)]
        self._engine.slots.admit(
            prefilled,
            unfinished,
            slots,
            first[unfinished],
            room=[self._steps_left(texts[row]) for row in unfinished],
            held=[self._decoding.min_new_tokens - len(texts[row].ids) for row in unfinished],
        )
        for slot, row in zip(slots, unfinished, strict=True):
            self._texts[slot], self._lengths[slot] = texts[row], counts[row]

    def advance(self) -> None:
        """Run one step, or several where the device chooses tokens; free the slots of texts that have ended."""
        left = {slot: self._steps_left(text) for slot, text in self._texts.items()}
        ahead = min(HISTORY, max(left.values())) if self._greedy and self._engine.captured else 1
        chosen = self._engine.steps(ahead, max(self._lengths.values()) + ahead)
        slots = sorted(self._texts)
        if self._greedy:
            said = {slot: row[: left[slot]] for slot, row in zip(slots, chosen[slots].tolist(), strict=True)}
        else:
            said = {slot: [token] for slot, token in zip(slots, self._sample(slots), strict=True)}
        ended = []
        for slot, tokens in said.items():
            text = self._texts[slot]
            text.take(tokens)
            self._lengths[slot] += len(tokens)
            if text.ended:
                ended.append(slot)
                del self._texts[slot], self._lengths[slot]
            else:
                self._check_room(text)
        if self._shrinks and len(self._texts) * 4 <= self._rows * 3:
            self._shrink()
        elif ended:
            self._engine.slots.free(ended)

    def _shrink(self) -> None:
        """Give up the slots that are free."""
        kept = sorted(self._texts)
        self._engine.slots.keep(kept)
        self._texts = {new: self._texts[old] for new, old in enumerate(kept)}
        self._lengths = {new: self._lengths[old] for new, old in enumerate(kept)}
        self._rows = len(kept)

    def _sample(self, slots: list[int]) -> list[int]:
        texts = [self._texts[slot] for slot in slots]
        state = self._engine.slots
        index = torch.tensor(slots, device=state.logits.device)
        tokens = choose(
            state.logits[index],
            self._decoding,
            [text.draw for text in texts],
            first=False,
            held=[text.held for text in texts],
            eos_ids=self._lm.eos_ids,
            banned=[self._bans.at(len(text.ids)) for text in texts],
        )
        state.tokens[index.to(state.tokens.device)] = tokens.to(state.tokens)
        return list(map(int, tokens.tolist()))

    def _steps_left(self, text: OpenText) -> int:
        return min(text.room, self._lm.max_positions - text.position - len(text.ids) + 1)

    def _check_room(self, text: OpenText) -> None:
        if self._steps_left(text) < 1:
            raise UserError(
                f"prompt: found {text.position + len(text.ids):,} tokens, expected at most "
                f"{self._lm.max_positions:,}, which is what {self._lm.name} was built for."
            )

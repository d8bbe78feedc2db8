"""Generating texts: of one prefill, or of any number of prefixes that take turns in a few slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.decoding.choose import Decoding, Generated, choose, suppressed
from latentwire.lm.decoding.engine import Engine, Model
from latentwire.lm.decoding.slots import HISTORY, seen_later
from latentwire.lm.decoding.text import Speaker, Text
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.prefix import Prefilled, Prefix

Refill = Callable[[int], tuple[Prefilled, list[Text]] | None]
"""Given how many slots are free: a prefill of at most so many rows with their texts, None when nothing is left."""


class Generator(Model, Speaker, Protocol):
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
        seeds: one a row, needed for sampling; a row's tokens depend on its own seed alone, so
            neither the batch nor its order changes them.

    Returns:
        One `Generated` a row; `prefilled` is left as it was.
    """
    if seeds is None:
        seeds = range(prefilled.rows)
    if len(seeds) != prefilled.rows:
        raise ValueError(f"seeds: found {len(seeds)}, expected one for each of {prefilled.rows} rows")
    texts = _texts(lm, decoding, seeds, prefilled)
    whole = iter([(prefilled, texts)])
    _write(lm, decoding, prefilled.rows, lambda free: next(whole, None) if free == prefilled.rows else None)
    return [text.result() for text in texts]


@torch.no_grad()
def generate_all(
    lm: Generator,
    prefixes: Iterable[Prefix],
    decoding: Decoding,
    seeds: Iterable[int] | None = None,
    rows: int = 32,
) -> list[Generated]:
    """Continue every row of every prefix, `rows` of them at a time: where one ends, the next begins.

    Args:
        prefixes: of any kinds and lengths, taken one by one as room becomes free.
        seeds: one a row of them all; 0, 1, 2, ... without.

    Returns:
        One `Generated` a row, in the order of the prefixes: what `generate` gives for each alone.
    """
    if rows < 1:
        raise ValueError(f"rows: found {rows}, expected >= 1")
    waiting = _rows_of(prefixes)
    numbers = iter(count() if seeds is None else seeds)
    texts: list[Text] = []
    kept: list[Prefix] = []

    def refill(free: int) -> tuple[Prefilled, list[Text]] | None:
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


def _texts(lm: Speaker, decoding: Decoding, seeds: Sequence[int], prefilled: Prefilled) -> list[Text]:
    positions = prefilled.next_position.tolist()
    return [Text(lm, decoding, seed, position) for seed, position in zip(seeds, positions, strict=True)]


def _rows_of(prefixes: Iterable[Prefix]) -> Iterator[Prefix]:
    for prefix in prefixes:
        for row in range(prefix.columns.positions.shape[0]):
            yield prefix.select(torch.tensor([row], device=prefix.columns.positions.device)).trimmed()


def _write(lm: Generator, decoding: Decoding, rows: int, refill: Refill) -> None:
    """Write texts in `rows` slots until `refill` has nothing left and all have ended."""
    engine = lm.engine
    desk = _Desk(lm, engine, decoding, rows)
    with evaluating(lm.model):
        try:
            more = True
            while True:
                # Prefilling is cheaper for several prompts at once, so a few slots may wait for each other.
                while more and (free := desk.free) and (len(free) * 4 >= rows):
                    batch = refill(len(free))
                    more = batch is not None
                    if batch is not None:
                        desk.seat(*batch)
                if not desk.live:
                    return
                desk.go_on()
        finally:
            engine.close()


class _Desk:
    """Which text is written in which slot."""

    def __init__(self, lm: Generator, engine: Engine, decoding: Decoding, rows: int) -> None:
        self._lm, self._engine, self._decoding, self._rows = lm, engine, decoding, rows
        self._seats: dict[int, Text] = {}
        self._lengths: dict[int, int] = {}
        self._open = False
        self._greedy = decoding.temperature == 0
        self._suppressed = suppressed(lm, decoding.begin_suppress_tokens)

    @property
    def free(self) -> list[int]:
        return [slot for slot in range(self._rows) if slot not in self._seats]

    @property
    def live(self) -> bool:
        return bool(self._seats)

    def seat(self, prefilled: Prefilled, texts: Sequence[Text]) -> None:
        """Choose the first token of every text; those that go on get a slot."""
        first = choose(
            prefilled.logits,
            self._decoding,
            [text.draw for text in texts],
            first=True,
            held=[text.held for text in texts],
            eos_ids=self._lm.eos_ids,
            suppressed=self._suppressed,
        )
        for text, token in zip(texts, first.tolist(), strict=True):
            text.take([token])
        going = [row for row, text in enumerate(texts) if not text.ended]
        if not going:
            return
        for row in going:
            self._check_room(texts[row])
        counts = seen_later(prefilled).sum(1).tolist()
        columns = max(counts[row] + texts[row].room for row in going)
        if self._open:
            self._engine.grow(columns)
        else:
            self._engine.open(prefilled, self._rows, columns)
            self._open = True
        slots = self.free[: len(going)]
        self._engine.slots.admit(
            prefilled,
            going,
            slots,
            first[going],
            room=[self._steps_left(texts[row]) for row in going],
            held=[self._decoding.min_new_tokens - len(texts[row].ids) for row in going],
        )
        for slot, row in zip(slots, going, strict=True):
            self._seats[slot], self._lengths[slot] = texts[row], counts[row]

    def go_on(self) -> None:
        """Take one step, or several where the device chooses, and free the slots of texts that have ended."""
        left = {slot: self._steps_left(text) for slot, text in self._seats.items()}
        ahead = min(HISTORY, max(left.values())) if self._greedy and self._engine.captured else 1
        chosen = self._engine.steps(ahead, max(self._lengths.values()) + ahead)
        slots = sorted(self._seats)
        if self._greedy:
            said = {slot: row[: left[slot]] for slot, row in zip(slots, chosen[slots].tolist(), strict=True)}
        else:
            said = {slot: [token] for slot, token in zip(slots, self._sample(slots), strict=True)}
        ended = []
        for slot, tokens in said.items():
            text = self._seats[slot]
            text.take(tokens)
            self._lengths[slot] += len(tokens)
            if text.ended:
                ended.append(slot)
                del self._seats[slot], self._lengths[slot]
            else:
                self._check_room(text)
        if ended:
            self._engine.slots.free(ended)

    def _sample(self, slots: list[int]) -> list[int]:
        texts = [self._seats[slot] for slot in slots]
        state = self._engine.slots
        index = torch.tensor(slots, device=state.logits.device)
        tokens = choose(
            state.logits[index],
            self._decoding,
            [text.draw for text in texts],
            first=False,
            held=[text.held for text in texts],
            eos_ids=self._lm.eos_ids,
        )
        state.tokens[index.to(state.tokens.device)] = tokens.to(state.tokens)
        return list(map(int, tokens.tolist()))

    def _steps_left(self, text: Text) -> int:
        return min(text.room, self._lm.max_positions - text.position - len(text.ids) + 1)

    def _check_room(self, text: Text) -> None:
        if self._steps_left(text) < 1:
            raise UserError(
                f"prompt: found {text.position + len(text.ids):,} tokens, expected at most "
                f"{self._lm.max_positions:,}, which is what {self._lm.name} was built for."
            )

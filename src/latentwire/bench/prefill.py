"""`latentwire bench prefill`: the first token of an answer, beside stock Transformers and the machine's limit.

Text is read by stock Transformers, by us as it comes, and by us at sizes that recur, captured as graphs, which is
the default on a GPU for short prefixes. Latents at hand are the keys and values of some columns of a context of
4,096 tokens, read with a question of 32; they are compared with stock Transformers' reading of both as text. All
ways run in one process on one model with random weights; the floor is the least time that the operations or the
bytes of a pass need at the measured rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.bench.decode_timing import prompt_ids, tokenizer
from latentwire.bench.setup import BenchRow, Setup, Timing
from latentwire.bench.train_costs import failure
from latentwire.bench.wire_first import Floor
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import Columns, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefilling.graphs import Mode
from latentwire.lm.prefix import Prefix
from latentwire.lm.scoring.questions import Shared

PARTS = ("text", "latents")
STOCK = "transformers"
OURS: dict[str, Mode] = {"latentwire, as it comes": "off", "latentwire": "graph"}
Place = dict[str, str | int | float]


@dataclass(frozen=True)
class Points:
    """What to read: `(batch, tokens)` of texts, and how many latents of a context at which batches."""

    texts: tuple[tuple[int, int], ...]
    context: int
    question: int
    latents: tuple[int, ...]
    batches: tuple[int, ...]


POINTS = {
    "cuda": Points(
        texts=(
            *((1, tokens) for tokens in (16, 64, 128, 512, 1024, 2048, 4128)),
            *((8, tokens) for tokens in (64, 512, 2048)),
            *((32, tokens) for tokens in (64, 512)),
        ),
        context=4096,
        question=32,
        latents=(64, 256, 1024),
        batches=(1, 8),
    ),
    "cpu": Points(((1, 16), (1, 64), (1, 512), (8, 64)), 512, 32, (8, 32), (1, 8)),
}
LONG = 4096
"""Tokens from which a pass is timed a few times only."""


@torch.no_grad()
def measure(setup: Setup) -> Iterator[BenchRow]:
    """Floor, stock Transformers and both of our ways for every text and for latents at hand."""
    points = POINTS.get(setup.device.type, POINTS["cpu"])
    model = setup.model().eval().requires_grad_(False)
    lm = LM(model, tokenizer(), name=setup.shape)
    if setup.wants("text"):
        for batch, tokens in points.texts:
            yield from _text(setup, lm, batch, tokens)
    if setup.wants("latents"):
        for batch in points.batches:
            yield from _latents(setup, lm, points, batch)


def _text(setup: Setup, lm: LM, batch: int, tokens: int) -> Iterator[BenchRow]:
    ids = prompt_ids(setup, lm.model.config.vocab_size, batch, tokens)
    at: Place = {"batch": batch, "tokens": tokens, "latents": 0}
    floor = Floor(setup, lm.model).seconds(tokens, rows=batch)
    yield BenchRow("floor", {"seconds": floor, "times_floor": 1.0}, at)
    stock = _stock(setup, lm, ids, at, floor)
    yield stock
    prefix = Prefix.of_tokens(ids.tolist(), device=setup.device)
    yield from _ours(setup, lm, lambda: prefix, at, floor, stock)


def _latents(setup: Setup, lm: LM, points: Points, batch: int) -> Iterator[BenchRow]:
    """Latents at hand, beside the text that they stand for."""
    context = prompt_ids(setup, lm.model.config.vocab_size, batch, points.context + points.question)
    text: Place = {"batch": batch, "tokens": context.shape[1], "latents": 0}
    floor = Floor(setup, lm.model)
    stock = _stock(setup, lm, context, text, floor.seconds(context.shape[1], rows=batch))
    yield stock
    read = Prefix.of_tokens(context[:, : points.context].tolist(), device=setup.device)
    question = [list(range(5, 5 + points.question))] * batch
    end = torch.full((batch,), points.context, device=setup.device)
    lm.prefill_graphs.release()
    _, every = lm.memorize(read, plain=True)
    for count in points.latents:
        kept = Shared(end, _thinned(every, points.context // count))
        at: Place = {"batch": batch, "tokens": points.question, "latents": count}
        least = floor.seconds(points.question, count, rows=batch)
        yield BenchRow("floor", {"seconds": least, "times_floor": 1.0}, at)
        yield from _ours(setup, lm, lambda kept=kept: kept.ask(question, lm), at, least, stock)  # type: ignore[misc]


def _thinned(memory: Memory, step: int) -> Memory:
    """Every `step`-th column, copied."""
    at = torch.arange(0, memory.columns.width, step, device=memory.columns.valid.device)
    columns = memory.columns
    return Memory(
        tuple(key[:, :, at] for key in memory.keys),
        tuple(value[:, :, at] for value in memory.values),
        Columns.of(columns.valid[:, at], columns.positions[:, at]),
    )


def _ours(
    setup: Setup, lm: LM, prefix: Callable[[], Prefix], at: Place, floor: float, stock: BenchRow
) -> Iterator[BenchRow]:
    for who, mode in OURS.items():
        graphs = lm.prefill_graphs
        graphs.mode = mode if setup.device.type == "cuda" or mode == "off" else "padded"
        graphs.refused = None
        before = graphs.captures
        row = _row(setup, who, lambda: lm.prefill(prefix()), at, floor, stock)
        note = graphs.refused or (f"{graphs.captures - before} captured" if mode == "graph" else "")
        yield BenchRow(row.who, row.figures, row.at, row.note or note)
    graphs.mode = "off"


def _stock(setup: Setup, lm: LM, ids: Tensor, at: Place, floor: float) -> BenchRow:
    """Transformers' own pass over text, in the model as it made it."""
    model, kernel = lm.model, attention.kernel(lm.model)
    attention.uninstall(model, "sdpa")
    try:
        return _row(setup, STOCK, lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1), at, floor)
    finally:
        attention.install(model, kernel)


def _row(
    setup: Setup, who: str, run: Callable[[], object], at: Place, floor: float, stock: BenchRow | None = None
) -> BenchRow:
    long = int(at["batch"]) * (int(at["tokens"]) + int(at["latents"])) >= LONG
    try:
        timing: Timing = setup.timed(run, repeats=3 if long else 9, warm=2 if long else 3)
    except RuntimeError as error:
        return BenchRow(who, {"seconds": None}, at, failure(error))
    theirs = None if stock is None else stock.figures["seconds"]
    figures = {
        "seconds": timing.seconds,
        "fastest": timing.low,
        "ms": timing.seconds * 1e3,
        "times_floor": timing.seconds / floor,
        "over_stock": timing.seconds / theirs if theirs else None,
        "peak_gib": timing.peak_gib if setup.device.type == "cuda" else None,
    }
    return BenchRow(who, figures, at)

"""Time to the first token: a context read as text, encoded now and read as latents, or encoded earlier."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from latentwire.bench.setup import BenchRow, Setup
from latentwire.bench.train_costs import failure
from latentwire.lm.model import LM
from latentwire.lm.operation_counts import Counts, causal
from latentwire.lm.prefix import Prefix
from latentwire.lm.scoring.questions import Shared
from latentwire.wires.latent.adapters import NativeConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import Anchors

RANK = 64
FIRST_ID = 5


@dataclass(frozen=True)
class Read:
    """Lengths in tokens of a context and of a question, and the numbers of latents to replace the context by."""

    context: int
    question: int
    latents: tuple[int, ...]


READ = {"cuda": Read(4096, 32, (64, 256, 1024)), "cpu": Read(512, 32, (8, 32, 128))}


def read_of(setup: Setup) -> Read:
    """The lengths to measure on the setup's device."""
    return READ.get(setup.device.type, READ["cpu"])


def context_of(lm: LM, columns: int) -> str:
    """A text that takes `columns` tokens, with what the prompt format puts before it."""
    framing = len(lm.format.before("a", lm)) - 1
    return "".join(chr(97 + at % 26) for at in range(columns - framing))


def modules_of(lm: LM, ratio: int, *, keep_first: bool = True) -> LatentModules:
    """The template's wire for a model with random weights."""
    encoder = SelfConfig(mask="prefix", rank=RANK, select=Anchors(ratio=ratio, keep_first=keep_first))
    config = LatentConfig(source=lm.name, encoder=encoder, adapters={lm.name: NativeConfig()})
    return LatentModules(config, {lm.name: lm}, lm).eval()


@torch.no_grad()
def stock(setup: Setup, model: PreTrainedModel) -> Iterator[BenchRow]:
    """The peer: Transformers' forward pass over context and question."""
    read = read_of(setup)
    columns = read.context + read.question
    ids = torch.randint(FIRST_ID, model.config.vocab_size, (1, columns), device=setup.device)
    floor = Floor(setup, model).seconds(columns)
    at: dict[str, str | int | float] = {"context": read.context, "question": read.question}
    yield BenchRow("floor: text", {"seconds": floor, "times_floor": 1.0}, at, "operations over the measured peak")
    yield _row(
        setup, "transformers, text", lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1), at, floor
    )


@torch.no_grad()
def measure(setup: Setup, lm: LM) -> Iterator[BenchRow]:
    """This engine: text, text with its keys and values at hand, latents encoded now, and latents at hand."""
    read = read_of(setup)
    context = context_of(lm, read.context)
    before = lm.format.before(context, lm)
    question = list(range(FIRST_ID, FIRST_ID + read.question))
    floor = Floor(setup, lm.model)
    whole = Prefix.of_tokens([[*before, *question]], device=setup.device)
    at: dict[str, str | int | float] = {"context": read.context, "question": read.question}
    text = _row(setup, "text", lambda: lm.prefill(whole), at, floor.seconds(read.context + read.question))
    yield text
    _, memory = lm.memorize(Prefix.of_tokens([before], device=setup.device))
    kept = Shared(torch.tensor([len(before)], device=setup.device), memory)
    sent = sum(each.nbytes for each in (*memory.keys, *memory.values))
    seconds = floor.seconds(read.question, read.context)
    yield _row(
        setup,
        "text, its keys and values at hand",
        lambda: lm.prefill(kept.ask([question], lm)),
        at,
        seconds,
        text,
        sent,
    )
    for count in read.latents:
        yield from _latents(setup, lm, context, question, count, text)
        gc.collect()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()


def _latents(
    setup: Setup, lm: LM, context: str, question: Sequence[int], count: int, text: BenchRow
) -> Iterator[BenchRow]:
    read, floor = read_of(setup), Floor(setup, lm.model)
    modules = modules_of(lm, math.ceil(read.context / count), keep_first=False).for_reading()
    message: Latents = modules([context])
    found, sent = int(message.valid.sum()), sum(each.nbytes for each in message.tensors)
    behind, encoding = floor.seconds(read.question, found), floor.encoding(read.context)
    at: dict[str, str | int | float] = {"context": read.context, "question": read.question, "latents": found}

    def first(latents: Latents) -> None:
        lm.prefill(modules.deliver(latents, lm.name).ask([question], lm))

    def encode() -> Latents:
        made: Latents = modules([context])
        return made

    warm = _row(setup, "latents at hand", lambda: first(message), at, behind, text, sent)
    yield _pays(_row(setup, "encode alone", encode, at, encoding, text, sent), text, warm)
    yield _row(setup, "latents, cold", lambda: first(encode()), at, encoding + behind, text, sent)
    yield warm
    if setup.dtype != torch.float32 and count == read.latents[-1]:
        modules = modules_of(lm, math.ceil(read.context / count), keep_first=False)
        who = "encode alone, adapters in float32 as they are trained"
        yield _pays(_row(setup, who, encode, at, encoding, text, sent), text, warm)


def _pays(encode: BenchRow, text: BenchRow, warm: BenchRow) -> BenchRow:
    """Adds after how many questions encoding once is faster than reading the text for each of them."""
    encoding, reading, behind = (row.figures["seconds"] for row in (encode, text, warm))
    if not encoding or not reading or not behind or behind >= reading:
        return encode
    return replace(encode, figures={**encode.figures, "pays_after": math.ceil(encoding / (reading - behind))})


class Floor:
    """The least time of a pass: its operations at the measured peak, or what it must read at the measured rate."""

    def __init__(self, setup: Setup, model: PreTrainedModel) -> None:
        self._setup, self._plain, self._adapted = setup, Counts.of(model), Counts.of(model, RANK)
        self._size = next(model.parameters()).element_size()

    def seconds(self, columns: int, behind: int = 0, rows: int = 1) -> float:
        """Seconds to read `columns` after `behind` others in each row and compute the logits of its last."""
        plain = self._plain
        numbers = plain.body + plain.head + rows * behind * plain.column
        return self._least(rows * plain.read(columns, causal(columns, behind), 1), numbers)

    def encoding(self, columns: int) -> float:
        """Seconds to read `columns` bidirectionally with adapters, up to their keys and values."""
        adapted = self._adapted
        return self._least(adapted.read(columns, columns * columns), adapted.body + adapted.lora)

    def _least(self, operations: float, numbers: float) -> float:
        return max(operations / self._setup.flops, numbers * self._size / self._setup.bandwidth)


def _row(
    setup: Setup,
    who: str,
    run: Callable[[], object],
    at: dict[str, str | int | float],
    floor: float,
    text: BenchRow | None = None,
    sent: int | None = None,
) -> BenchRow:
    """Time one way to the first token. text: the row to compare with. sent: bytes of keys and values read."""
    try:
        timing = setup.timed(run, repeats=7, warm=2)
    except RuntimeError as error:
        return BenchRow(who, {"seconds": None}, at, failure(error))
    whole = None if text is None else text.figures["seconds"]
    figures = {
        "seconds": timing.seconds,
        "fastest": timing.low,
        "floor_seconds": floor,
        "times_floor": timing.seconds / floor,
        "over_text": timing.seconds / whole if whole else None,
        "mib": None if sent is None else sent / 2**20,
        "peak_gib": timing.peak_gib if setup.device.type == "cuda" else None,
    }
    return BenchRow(who, figures, at)

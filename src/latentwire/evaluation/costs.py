"""What a latent wire costs beside the text: bytes, and milliseconds to the first token of an answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean, median
from typing import Any

import torch

from latentwire.evaluation.arms import Arm
from latentwire.evaluation.encoded import EncodedExample, prepare, reader_of
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.tasks.base import Split, Task
from latentwire.wires import Wire, parse
from latentwire.wires.latent.message import Latents, quantize

REPEATS = 20
"""How many contexts are timed, one at a time; the median is reported."""
WARM_UP = 2


@dataclass(frozen=True)
class Costs:
    """Costs of one arm on one task: means of sizes and medians of times, one context and question at a time.

    Attributes:
        contexts: how many were measured.
        context_tokens: tokens of the carried context as text.
        latents: latent vectors or key/value pairs of its message.
        text_bytes: the context as UTF-8.
        text_kv_bytes: the context's keys and values in bfloat16, all layers.
        latent_bytes: the message by bits per number (16, 8, 6, 4), scales included.
        encode_ms: from context to latents.
        text_ms: from context and question as text to the first token's probabilities.
        cold_ms: encoding, then the question after the latents.
        warm_ms: the question alone, with latents already there.
        question_aware: each question has a message of its own, so that encoding never pays off later.
    """

    contexts: int
    context_tokens: float
    latents: float
    text_bytes: float
    text_kv_bytes: float
    latent_bytes: dict[int, float]
    encode_ms: float
    text_ms: float
    cold_ms: float
    warm_ms: float
    question_aware: bool = False

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it, `pays_after` included."""
        return {**asdict(self), "pays_after": self.pays_after}

    @property
    def pays_after(self) -> int | None:
        """From how many questions about one context on encoding it once is faster than reading its text again for
        each; None if it never is."""
        saved = self.text_ms - self.warm_ms
        return math.ceil(self.encode_ms / saved) if saved > 0 and not self.question_aware else None


@torch.no_grad()
def measure(
    lm: LM, task: Task, arm: Arm, *, split: Split = "test", limit: int | None = None, repeats: int = REPEATS
) -> Costs:
    """Measure an arm whose wire `compresses`.

    Example:
        >>> measure(lm, task, Arm(parse("nth,ratio=4")), limit=50).warm_ms

    Args:
        lm: the reader.
        task: whose examples are measured.
        arm: what is measured.
        split: which examples.
        limit: the first N of them; None takes all.
        repeats: how many of these are timed, starting over at the first if there are fewer.

    Raises:
        UserError: as `evaluate`.
    """
    arm, items = arm.bind(lm).prepared(lm, task, prepare(lm, task, split, limit))
    plain, reader, text = reader_of(lm, task), arm.reading(lm, task), parse("text")
    chosen = [items[at % len(items)] for at in range(WARM_UP + repeats)]
    sizes = [_sizes(arm, item, plain) for item in chosen[:repeats]]
    as_text = [partial(_read, plain, text, item) for item in chosen]
    times = [_times(arm, item, reader, read) for item, read in zip(chosen, as_text, strict=True)][WARM_UP:]
    encode, read, cold, warm = (median(column) for column in zip(*times, strict=True))
    tokens, latents, words, memory, *by_bits = (mean(column) for column in zip(*sizes, strict=True))
    return Costs(
        contexts=repeats,
        context_tokens=tokens,
        latents=latents,
        text_bytes=words,
        text_kv_bytes=memory,
        latent_bytes=dict(zip((16, 8, 6, 4), by_bits, strict=True)),
        encode_ms=encode,
        text_ms=read,
        cold_ms=cold,
        warm_ms=warm,
        question_aware=arm.wire.question_aware,
    )


def _sizes(arm: Arm, item: EncodedExample, lm: LM) -> list[float]:
    [context] = arm.wire.carried([item.prompt], lm)
    message = arm.wire.encode([context])
    assert isinstance(message, Latents), "expected a wire that compresses"
    plain = lm.format.before(context, lm)
    _, memory = lm.memorize(Prefix.of_tokens([plain], device=lm.device), states=False)
    numbers = sum(each.numel() for each in (*memory.keys, *memory.values))
    count = [len(plain), int(message.valid.sum()), len(context.encode()), 2 * numbers]
    return [*count, *message.nbytes(), *(quantize(message, bits).nbytes()[0] for bits in (8, 6, 4))]


def _read(lm: LM, text: Wire, item: EncodedExample) -> None:
    lm.prefill(text([item.prompt], lm))


def _times(arm: Arm, item: EncodedExample, lm: LM, as_text: Callable[[], None]) -> Sequence[float]:
    """Milliseconds to encode, to read as text, cold and warm."""

    carried = arm.wire.carried([item.prompt], lm)

    def cold() -> None:
        lm.prefill(arm.wire.deliver(arm.wire.encode(carried), [item.prompt], lm))

    message = arm.wire.encode(carried)
    return (
        _clock(lm, lambda: arm.wire.encode(carried)),
        _clock(lm, as_text),
        _clock(lm, cold),
        _clock(lm, lambda: lm.prefill(arm.wire.deliver(message, [item.prompt], lm))),
    )


def _clock(lm: LM, work: Callable[[], object]) -> float:
    _wait(lm)
    started = time.perf_counter()
    work()
    _wait(lm)
    return 1e3 * (time.perf_counter() - started)


def _wait(lm: LM) -> None:
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)

"""What the training of a wire or a bridge needs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import mean

from latentwire.estimates.model_shapes import ModelShape
from latentwire.estimates.workload import Workload
from latentwire.lm.operation_counts import causal
from latentwire.lm.prefix import STEADY, rounded
from latentwire.training.wire import memory
from latentwire.training.wire.asking import Asked
from latentwire.training.wire.step_needs import StepNeeds, StepShape
from latentwire.training.wire.wire_training_config import WireTraining

SAMPLE, LOOKED_AT = 512, 20_000
"""Contexts whose tokens are counted, taken evenly from so many at the beginning of the data, which may not end."""
DRAWS = 200
"""Steps that are drawn from the sample: a step is padded to its longest passage."""
FILLED = 0.9
"""Of `step_tokens`, the share that a step fills on average before the next passage is too wide."""


@dataclass(frozen=True)
class _Passages:
    """Means over a sample of passages, in the tokens of one reader; `asked` is of the questions asked at once.

    `padded` is the mean width of a step of so many passages, and `fullest` the largest.
    """

    text: float
    asked: float
    question: float
    answers: float
    width: float
    padded: float
    fullest: float


def count(settings: WireTraining, shapes: Mapping[str, ModelShape]) -> Workload:
    """The workload of a training.

    Args:
        settings: the stage's.
        shapes: the encoder's model and the readers, by name.

    Raises:
        UserError: as the data, where it cannot be read.
    """
    source = shapes[settings.wire.source]
    passages = {name: _passages(settings, shapes[name]) for name in settings.readers}
    first = passages[settings.readers[0]]
    rows = settings.passages
    if settings.step_tokens is not None:
        rows = max(1, int(FILLED * settings.step_tokens / max(each.width for each in passages.values())))
    rank = getattr(settings.wire.encoder, "rank", 0) if settings.wire.encoder.kind == "self" else 0
    reads = settings.wire.encoder.kind in ("self", "source", "frozen")
    teaches = any(term.needs_teacher or term.kind == "imitate" for term in settings.objectives)
    step = StepNeeds(0, 0, 0, 0)
    passes = columns = 0.0
    kept = 0.0
    for name, each in passages.items():
        reader = shapes[name]
        shape = StepShape(
            contexts=rows,
            tokens=int(each.text),
            asked=int(each.asked),
            answers=int(each.answers),
            latents=_latents(settings, each.text) + (each.text if settings.wire.layout == "text" else 0),
            terms=len(settings.objectives),
            behind=each.asked / max(1.0, each.question) * causal(int(each.question)),
        )
        encodes = name == settings.readers[0] and reads
        step = step + StepNeeds.counted(
            reader.counts, source.adapted(rank), shape, teaches=teaches, encodes=encodes, learns=rank > 0
        )
        layers, encoder = reader.counts.layers, source.counts.layers if encodes else 0
        passes += layers * (3 + teaches) + encoder * (3 if rank else 1)
        read = each.asked + (each.text if settings.wire.layout == "text" else 0)
        kept += rows * reader.counts.activations(int(read))
        kept += rows * source.counts.activations(int(each.text)) if encodes and rank else 0
        columns += rows * (each.text + each.asked)
    width = max(each.width for each in passages.values())
    if settings.step_tokens is None:
        padded = max(each.padded for each in passages.values()) / width
        fullest = max(each.fullest for each in passages.values()) / width
    else:
        padded, fullest = 1.0, max(1.0, settings.step_tokens / (rows * width))
    kept *= fullest  # the fullest step decides, not the mean one
    trained = rank * source.lora_per_rank + _adapters(settings, shapes)
    static = 4 * trained * 2 + memory.OPTIMIZER_BYTES[settings.optimizer] * trained
    size = settings.frozen_dtype.itemsize
    models = {each.name: each for each in (source, *(shapes[name] for name in passages))}
    resident = size * sum(each.parameters for each in models.values()) + static
    recomputes = bool(settings.activation_checkpointing)
    evaluations = settings.steps // settings.eval_steps + 1
    held = settings.eval_samples / max(1, rows)
    steps = settings.steps + evaluations * held / 3  # an evaluation reads forward only
    parts = settings.accumulation
    return Workload(
        kind="wire",
        units=settings.steps,
        tokens=settings.steps * columns,
        operations=steps * step.step * padded * (4 / 3 if recomputes else 1),
        passes=steps * passes * parts * (4 / 3 if recomputes else 1),
        decode_passes=_samples(settings, shapes, evaluations),
        moved=settings.steps * 28.0 * trained,
        written=evaluations * (static + 4.0 * trained),
        memory=resident + (0.25 if recomputes else 1.0) * kept / parts,
        resident=resident,
        passages=steps * rows,
        remark=f"{rows} passages of {first.text:.0f} tokens a step, {trained / 1e6:.1f} M numbers trained",
    )


def _samples(settings: WireTraining, shapes: Mapping[str, ModelShape], evaluations: int) -> float:
    """Single steps of the samples that every evaluation generates."""
    steps = 48 if settings.samples else 0
    return evaluations * steps * sum(shapes[name].counts.layers for name in settings.readers)


def _passages(settings: WireTraining, shape: ModelShape) -> _Passages:
    asking = shape.asking(settings.wire)
    groups = list(islice(settings.data.contexts("train"), LOOKED_AT))
    groups = groups[:: -(-len(groups) // SAMPLE)] if groups else groups
    asked: list[Asked] = []
    if groups and groups[0].continues:
        asked = asking.continuations([group.examples[0] for group in groups])
    else:
        asked = asking.contexts([group.examples for group in groups])
    rows, questions, answers, lengths = [], [], [], []
    for each in asked:
        pairs = each.pairs[: settings.questions]
        sizes = [len(question) + len(answer) for question, answer in pairs]
        rows.append(rounded(len(each.text), STEADY))
        questions.append(rounded(sum(sizes), STEADY))
        answers.append(sum(len(answer) for _, answer in pairs))
        lengths += sizes
    text, together = mean(rows), mean(questions)
    widths = _widths(rows, questions, settings)
    return _Passages(text, together, mean(lengths), mean(answers), text + together, mean(widths), max(widths))


def _widths(texts: list[int], questions: list[int], settings: WireTraining) -> list[int]:
    """The columns of a row in drawn steps: texts and questions are each padded to the step's longest."""
    draw = random.Random("estimate/steps")
    size = min(settings.passages, len(texts))
    steps = [draw.sample(range(len(texts)), size) for _ in range(min(DRAWS, settings.steps))]
    return [max(texts[n] for n in step) + max(questions[n] for n in step) for step in steps]


def _latents(settings: WireTraining, text: float) -> float:
    encoder = settings.wire.encoder
    if encoder.count is not None:
        return float(encoder.count)
    ratio = getattr(getattr(encoder, "select", None), "ratio", 1)
    return 1 + text / ratio


def _adapters(settings: WireTraining, shapes: Mapping[str, ModelShape]) -> int:
    """Numbers in adapters, from what each kind maps to what: all but `native` end in a reader's own widths."""
    total = 0
    for name in settings.readers:
        counts, adapter = shapes[name].counts, settings.wire.adapters[name]
        hidden = getattr(adapter, "hidden", 0)
        if adapter.kind == "deep_prefix":
            total += hidden * (counts.column + 3 * hidden)
        elif adapter.kind != "native":
            total += 2 * hidden * (counts.head // max(1, shapes[name].vocabulary))
    return total

"""What finetunings and evaluations need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from latentwire.estimates.model_shapes import ModelShape
from latentwire.estimates.workload import Workload
from latentwire.evaluation import batch_size
from latentwire.lm.operation_counts import causal
from latentwire.lm.scoring.shared_scorer import BATCH_TOKENS
from latentwire.tasks.base import Split, Task
from latentwire.training import losses
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.wire import memory

LABELLED = 0.5
"""Of a packed row's columns, the share that is learned."""
LOSS = losses.CHUNK_BYTES + 3 * losses.PART_BYTES
"""Bytes of the loss: a chunk's logits and three float32 pieces of them."""
MEMORY = 2**37
"""Bytes of an accelerator for which an evaluation's batches are counted: the largest of today."""
SAMPLE = 200
"""Examples of each task whose tokens are counted."""


def finetuning(settings: Finetuning, model: ModelShape, documents: float) -> Workload:
    """The workload of a finetuning.

    Args:
        settings: the stage's.
        model: what is finetuned.
        documents: tokens of one document, which decides how far attention reaches.
    """
    rank = 0 if settings.lora is None else settings.lora.rank
    counts, columns = model.adapted(rank), settings.rows * settings.row_tokens
    pairs, labels = columns / documents * causal(int(documents)), int(LABELLED * columns)
    forward = counts.read(columns, pairs, labels)
    back = counts.read_back(columns, pairs, labels) + (
        0 if rank else 2 * (columns * counts.body + labels * counts.head)
    )
    teaches = any(term.needs_teacher for term in settings.objectives)
    again = settings.activation_checkpointing
    step = forward * (1 + teaches + again) + back
    evaluations = settings.steps // settings.eval_steps + 1
    held = settings.eval_samples * documents / columns
    trained = rank * model.lora_per_rank if rank else model.parameters
    kept = 2 if settings.weights == "bfloat16" else 4
    gradients = 0 if settings.release_gradients else kept * trained
    state = memory.OPTIMIZER_BYTES[settings.optimizer] * trained
    cast = 2 * model.parameters if settings.precision == "bf16" and kept == 4 else 0
    activations = counts.activations(columns) // settings.accumulation
    if settings.precision == "fp32":
        activations *= 2
    if again:  # a layer's input is kept, and one layer at a time is whole
        activations = (
            activations // counts.layers + 2 * counts.layers * columns * _width(model) // settings.accumulation
        )
    resident = (
        kept * model.parameters + gradients + state + (0 if teaches is False or rank else 4 * model.parameters)
    )
    passes = counts.layers * (3 + teaches + again) * settings.accumulation
    return Workload(
        kind="finetune",
        units=settings.steps,
        tokens=settings.steps * columns,
        operations=settings.steps * step + evaluations * held * forward,
        passes=settings.steps * passes + evaluations * held * counts.layers,
        decode_passes=evaluations * (48 * counts.layers if settings.samples else 0),
        moved=settings.steps * 28.0 * trained,
        written=evaluations * (kept * trained + state + kept * trained) + 2 * kept * model.parameters,
        memory=resident + cast + activations + LOSS,
        resident=resident,
        remark=f"{settings.rows} rows of {settings.row_tokens} tokens, {trained / 1e6:.1f} M numbers trained",
    )


def evaluation(
    arms: Sequence[str],
    readers: Mapping[str, ModelShape],
    own: ModelShape,
    tasks: Sequence[Task],
    split: Split,
    limit: int | None,
    size: int,
) -> Workload:
    """The workload of an evaluation.

    Args:
        arms: as the study writes them.
        readers: further models that read, by name.
        own: the model that reads where an arm names none.
        tasks, split, limit: what is answered.
        size: bytes of a number.
    """
    operations = passes = decode = moved = tokens = 0.0
    answers, widest = 0, BATCH_TOKENS
    for task in tasks:
        examples = task.examples(split, limit)
        for arm in arms:
            reader = readers.get(arm.rpartition("@")[2], own)
            prompt, context, answer = _lengths(task, split, limit, reader)
            read = (
                prompt - context if arm.startswith("none") else 2 * prompt if arm.startswith("repeat") else prompt
            )
            each = batch_size.column_bytes(reader.counts, reader.vocabulary, size)
            batch = batch_size.fitting(int(len(examples) * prompt), each, MEMORY)
            rows, widest = max(1, int(batch / max(1.0, prompt))), max(widest, batch)
            batches = len(examples) / rows
            counts = reader.counts
            columns = read + answer
            operations += len(examples) * counts.read(int(columns), causal(int(columns)), int(answer))
            # Latents are encoded in one pass, and read with the question in another.
            passes += batches * counts.layers * (1 if arm.startswith(("text", "none", "repeat", "budget")) else 3)
            if task.answer != "choice":
                steps = batches * task.max_new_tokens
                decode += steps * counts.layers
                moved += steps * counts.step_bytes(rows, int(read), size)
            tokens += len(examples) * columns
            answers += len(examples)
    models = {shape.name: shape for shape in (own, *readers.values())}
    weights = size * sum(shape.parameters for shape in models.values())
    column = batch_size.column_bytes(own.counts, own.vocabulary, size)
    return Workload(
        kind="evaluate",
        units=answers,
        tokens=tokens,
        operations=operations,
        passes=passes,
        decode_passes=decode,
        moved=moved,
        written=1000.0 * answers,
        memory=weights + widest * column,
        resident=weights,
        remark=f"{len(arms)} arms, {answers:,} answers",
    )


def _width(model: ModelShape) -> int:
    return model.counts.head // model.vocabulary


def _lengths(task: Task, split: Split, limit: int | None, model: ModelShape) -> tuple[float, float, float]:
    """Means over a sample: tokens of a prompt, of the context in it, and of all its answers together."""
    examples = task.examples(split, min(SAMPLE, limit or SAMPLE))
    words = model.words
    format_ = task.asked_in(words.format)
    encoded = [format_.encode_all(list(example.requests()), words) for example in examples]
    prompts = [max(prompt.tokens for prompt, _ in rows) for rows in encoded]
    answers = [sum(len(answer) for _, found in rows for answer in found) for rows in encoded]
    contexts = words.tokenizer([example.context for example in examples], add_special_tokens=False)["input_ids"]
    return mean(prompts), mean(map(len, contexts)), mean(answers)

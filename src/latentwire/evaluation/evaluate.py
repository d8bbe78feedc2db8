"""Arms times tasks: every arm answers the same examples, and each answer is an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from latentwire.errors import UserError
from latentwire.evaluation import metrics
from latentwire.evaluation.outcomes import Outcome
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Example, Prompt
from latentwire.lm.scoring import Score, score_whole
from latentwire.tasks.base import Split, Task
from latentwire.tasks.floors import type_floor
from latentwire.wires import Wire

BATCH_TOKENS = 8192
"""Columns of one batch, padding included."""

Progress = Callable[[str, str, int], None]
"""Called with arm, task and the number of examples that have just been answered."""


@dataclass(frozen=True)
class Item:
    """An example made ready for a reader: its prompt, and its answers' token ids."""

    example: Example
    prompt: Prompt
    answers: tuple[list[int], ...]


@dataclass
class Evaluation:
    """What came of it.

    outcomes: task by task, arm by arm, examples in the task's order.
    floors: per task what a reader earns who reads nothing (`chance`) or ignores whom the question is about
        (`type_floor`), where that is known.
    unstable: per task how many prompts end in tokens that the answer would change; those tokens stay
        outside the bidirectional block.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    unstable: dict[str, int] = field(default_factory=dict)


def evaluate(
    lm: LM,
    tasks: Sequence[Task],
    wires: Sequence[Wire],
    *,
    split: Split = "test",
    limit: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Evaluation:
    """Let every wire answer every task.

    Everything is tokenized and measured before the first forward pass, so that a prompt that does not fit
    ends the evaluation before it costs anything.

    Args:
        limit: the first so many examples of each task; None takes all.
        batch_tokens: the size of a batch; results do not depend on it beyond rounding.

    Raises:
        UserError: a task without examples, or a prompt longer than the model.
    """
    bound = [wire.bind(lm) for wire in wires]
    prepared = ready(lm, tasks, wires, split=split, limit=limit)
    result = Evaluation()
    for task in tasks:
        items = prepared[task.name]
        result.floors[task.name] = _floors([item.example for item in items])
        result.unstable[task.name] = sum(item.prompt.unstable > 0 for item in items)
        for wire in bound:
            found: dict[str, Outcome] = {}
            for batch in batches(items, batch_tokens):
                found.update({o.id: o for o in answer(lm, task, wire, batch)})
                if progress:
                    progress(wire.label, task.name, len(batch))
            result.outcomes += [found[item.example.id] for item in items]
    return result


def ready(
    lm: LM, tasks: Sequence[Task], wires: Sequence[Wire], *, split: Split = "test", limit: int | None = None
) -> dict[str, list[Item]]:
    """Every task's examples, tokenized and measured under every wire.

    Raises:
        UserError: a task without examples, or a prompt longer than the model.
    """
    prepared = {task.name: prepare(lm, task, split, limit) for task in tasks}
    for task in tasks:
        for wire in wires:
            _check_lengths(lm, task, wire.bind(lm), prepared[task.name])
    return prepared


def prepare(lm: LM, task: Task, split: Split, limit: int | None) -> list[Item]:
    """The task's examples, tokenized for a reader."""
    examples = task.examples(split, limit)
    if not examples:
        raise UserError(f"task: {task.name} has no examples in its {split} split.")
    return [Item(example, *lm.format.encode(example, lm)) for example in examples]


def batches(items: Sequence[Item], batch_tokens: int) -> Iterator[list[Item]]:
    """Items of like length together, longest first, so that memory runs out at once or not at all.

    The composition follows the plain prompt and not the arm: all arms of a study see the same batches.
    """
    batch: list[Item] = []
    widest = 0
    for item in sorted(items, key=_columns, reverse=True):
        widest = max(widest, _columns(item))
        if batch and widest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, widest = [], _columns(item)
        batch.append(item)
    if batch:
        yield batch


def _columns(item: Item) -> int:
    return item.prompt.tokens + sum(map(len, item.answers))


def answer(lm: LM, task: Task, wire: Wire, batch: Sequence[Item]) -> list[Outcome]:
    """One batch of a task under one (bound) wire."""
    prefix = wire([item.prompt for item in batch], lm)
    read = prefix.columns.valid.sum(1)
    if prefix.memory is not None:
        read = read + prefix.memory.columns.valid.sum(1)
    texts, scores = _ask(lm, task, prefix, batch)
    return [
        _outcome(task, wire, item, text, score, columns)
        for item, text, score, columns in zip(batch, texts, scores, read.tolist(), strict=True)
    ]


@torch.no_grad()
def _ask(lm: LM, task: Task, prefix: Prefix, batch: Sequence[Item]) -> tuple[list[str | None], list[list[Score]]]:
    answers = [item.answers for item in batch]
    if task.answer == "choice" and prefix.leaky:
        return [None] * len(batch), score_whole(lm, prefix, answers)
    prefilled = lm.prefill(prefix)
    scores = score_whole(lm, prefix, answers) if prefix.leaky else lm.score(prefilled, answers)
    if task.answer == "choice":
        return [None] * len(batch), scores
    how = Decoding(max_new_tokens=task.max_new_tokens, stop=task.stop)
    return [text.text.strip() for text in lm.generate(prefilled, how)], scores


def _outcome(task: Task, wire: Wire, item: Item, text: str | None, scores: list[Score], columns: int) -> Outcome:
    example = item.example
    error = None
    if text is None:
        logprobs = [score.logprob for score in scores]
        found = metrics.score_choice(logprobs, example.choices, example.gold)
        gold = scores[example.gold]
        text = example.choices[logprobs.index(max(logprobs))]
    elif task.answer == "span":
        found, gold = metrics.score_span(text, example.answers), scores[0]
        error = metrics.span_error(text, example)
    else:
        found, gold = metrics.score_solution(text, example.answers), scores[0]
        error = "unreadable" if found["unreadable"] else None if found["exact_match"] else "wrong number"
    return Outcome(
        task=task.name,
        arm=wire.label,
        id=example.id,
        group=example.group,
        prediction=text,
        metrics={**found, "nll": -gold.logprob / gold.tokens},
        error=error,
        tokens=columns,
    )


def _floors(examples: Sequence[Example]) -> dict[str, float]:
    floors = {}
    if all(example.choices for example in examples):
        floors["chance"] = metrics.chance(examples)
    if all(example.candidates for example in examples):
        floors["type_floor"] = type_floor(examples)
    return floors


def _check_lengths(lm: LM, task: Task, wire: Wire, items: Sequence[Item]) -> None:
    longest = max(items, key=lambda item: item.prompt.tokens)
    behind = max(len(answer) for item in items for answer in item.answers)
    if task.answer != "choice":
        behind = max(behind, task.max_new_tokens)
    columns = int(wire([longest.prompt], lm).next_position.max()) + behind
    if columns > lm.max_positions:
        raise UserError(
            f"{task.name}: {longest.example.id} needs {columns:,} tokens over {wire.label} with its answer, "
            f"expected at most {lm.max_positions:,}, which is what {lm.name} was built for."
        )

"""Arms times tasks: every arm answers the same examples, and each answer is an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
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
    """An example made ready for a reader.

    prompts: one for all answers, or one an answer. answers: token ids.
    """

    example: Example
    prompts: tuple[Prompt, ...]
    answers: tuple[list[int], ...]

    @property
    def prompt(self) -> Prompt:
        """The longest of the prompts."""
        return max(self.prompts, key=lambda prompt: prompt.tokens)

    def rows(self) -> list[tuple[Prompt, tuple[list[int], ...]]]:
        """The prompts, each with the answers that are scored behind it."""
        if len(self.prompts) == 1:
            return [(self.prompt, self.answers)]
        return [(prompt, (answer,)) for prompt, answer in zip(self.prompts, self.answers, strict=True)]


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
        result.unstable[task.name] = sum(any(prompt.unstable for prompt in item.prompts) for item in items)
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
    reader = reading(lm, task)
    items = []
    for example in examples:
        encoded = [reader.format.encode(request, reader) for request in example.requests()]
        answers = [answer for _, behind in encoded for answer in behind]
        items.append(Item(example, tuple(prompt for prompt, _ in encoded), tuple(answers)))
    return items


def reading(lm: LM, task: Task) -> LM:
    """The same model, with the task's own prompt format where it has one."""
    if task.format is None:
        return lm
    reader = copy(lm)
    reader.format = task.format
    return reader


def batches(items: Sequence[Item], batch_tokens: int) -> Iterator[list[Item]]:
    """Items of like length together, longest first, so that memory runs out at once or not at all.

    The composition follows the plain prompt and not the arm: all arms of a study see the same batches.
    """
    batch: list[Item] = []
    widest = rows = 0
    for item in sorted(items, key=_columns, reverse=True):
        widest, rows = max(widest, _columns(item)), rows + len(item.prompts)
        if batch and widest * rows > batch_tokens:
            yield batch
            batch, widest, rows = [], _columns(item), len(item.prompts)
        batch.append(item)
    if batch:
        yield batch


def _columns(item: Item) -> int:
    return max(prompt.tokens + sum(map(len, behind)) for prompt, behind in item.rows())


def answer(lm: LM, task: Task, wire: Wire, batch: Sequence[Item]) -> list[Outcome]:
    """One batch of a task under one (bound) wire."""
    reader = reading(lm, task)
    rows = [row for item in batch for row in item.rows()]
    prefix = wire([prompt for prompt, _ in rows], reader)
    read = prefix.columns.valid.sum(1)
    if prefix.memory is not None:
        read = read + prefix.memory.columns.valid.sum(1)
    texts, scores = _ask(reader, task, prefix, [behind for _, behind in rows])
    outcomes, at = [], 0
    for item in batch:
        mine = slice(at, at + len(item.prompts))
        score = [each for row in scores[mine] for each in row]
        outcomes.append(_outcome(task, wire, item, texts[at], score, int(read[mine].sum())))
        at = mine.stop
    return outcomes


@torch.no_grad()
def _ask(
    lm: LM, task: Task, prefix: Prefix, answers: Sequence[Sequence[list[int]]]
) -> tuple[list[str | None], list[list[Score]]]:
    if task.answer == "choice" and prefix.leaky:
        return [None] * len(answers), score_whole(lm, prefix, answers)
    prefilled = lm.prefill(prefix)
    scores = score_whole(lm, prefix, answers) if prefix.leaky else lm.score(prefilled, answers)
    if task.answer == "choice":
        return [None] * len(answers), scores
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
        found = task.judge(text, example) if task.judge else metrics.score_solution(text, example.answers)
        gold = scores[0]
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
    columns = int(wire([longest.prompt], reading(lm, task)).next_position.max()) + behind
    if columns > lm.max_positions:
        raise UserError(
            f"{task.name}: {longest.example.id} needs {columns:,} tokens over {wire.label} with its answer, "
            f"expected at most {lm.max_positions:,}, which is what {lm.name} was built for."
        )

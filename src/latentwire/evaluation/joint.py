"""Several readers of one wire: their oracle, and their joint answer by rescoring each other's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from latentwire.evaluation import metrics
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.batch_size import batch_tokens
from latentwire.evaluation.encoded import EncodedExample, batches, columns_of, encode_all, prepare
from latentwire.evaluation.outcomes import Outcome
from latentwire.lm.halving import Halving
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.process_group import ALONE, Group
from latentwire.tasks.base import Split, Task
from latentwire.wires.stepwise import Stepwise


def union(arms: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """The oracle over arms on the same examples: for each example the best outcome by its primary metric.

    The first arm's outcome wins a tie, and its order is kept. The label is `union(A + B)`. Of arms without any
    example there is none.

    Example:
        >>> best = union(shared([heron_outcomes, wren_outcomes]))

    Raises:
        ValueError: the arms' examples differ.
    """
    if not all(arms):
        return []
    by_example = [{(o.task, o.id): o for o in arm} for arm in arms]
    if any(outcomes.keys() != by_example[0].keys() for outcomes in by_example):
        raise ValueError("an oracle needs arms on the same examples")
    label = f"union({' + '.join(arm[0].arm for arm in arms)})"
    best = [max((outcomes[key] for outcomes in by_example), key=_primary) for key in by_example[0]]
    return [replace(outcome, arm=label) for outcome in best]


def _primary(outcome: Outcome) -> float:
    return next(iter(outcome.metrics.values()))


@torch.no_grad()
def joint(
    readers: Sequence[tuple[LM, Arm]],
    task: Task,
    said: Sequence[Sequence[Outcome]],
    *,
    split: Split = "test",
    limit: int | None = None,
    group: Group = ALONE,
    halving: Halving | None = None,
) -> list[Outcome]:
    """The readers' joint answer: of all candidates the one with the largest sum of their log-probabilities.

    Candidates are the choices, or the readers' own answers. Sums over the tokens of whole answers make readers
    with different tokenizers comparable. The label is `joint(A + B)`; metrics are those of the task's kind alone.

    Args:
        readers: each model with its arm.
        task: what is asked.
        said: the readers' own outcomes on this task.
        split: which examples.
        limit: the first N of them; None takes all.
        group: the processes that share the work, as in `evaluate`.
        halving: as in `evaluate`.

    Raises:
        UserError: as `evaluate`.
    """
    halving = halving or Halving()
    sums: dict[str, list[float]] = {}
    chosen: dict[str, Example] = {}
    read: Counter[str] = Counter()
    own = [{outcome.id: outcome.prediction for outcome in arm} for arm in said]
    for lm, arm in readers:
        bound, items = arm.bind(lm).prepared(lm, task, prepare(lm, task, split, limit))
        reader = bound.reading(lm, task)
        choices, sent = [], []
        for item in items:
            example = item.example
            read[example.id] += 1
            offered = _offered(example, own)
            chosen[example.id] = example
            sums.setdefault(example.id, [0.0] * len(offered))
            if offered:
                choices.append(replace(example, choices=offered, answers=(), gold=0))
                sent.append(item.prompt.sent)
        asked = encode_all(choices, reader, sent)
        dealt = list(batches(asked, batch_tokens(reader, asked)))
        mine = []
        for batch in group.share(dealt):
            parts = halving.read(
                batch, partial(_logprobs, bound, reader), columns_of, lambda item: item.example.id
            )
            mine.append([row for _, rows in parts for row in rows])
        for batch, logprobs in zip(dealt, group.interleaved(mine), strict=True):
            for item, row in zip(batch, logprobs, strict=True):
                total = zip(sums[item.example.id], row, strict=True)
                sums[item.example.id] = [so_far + logprob for so_far, logprob in total]
    label = f"joint({' + '.join(arm.label for _, arm in readers)})"
    # A reader whose arm leaves an example out has no say in it, and the others' is not joint.
    everyone = [example for example in chosen.values() if read[example.id] == len(readers)]
    return [_decided(task, label, example, sums[example.id], own) for example in everyone]


def _logprobs(bound: Arm, reader: LM, batch: Sequence[EncodedExample]) -> list[list[float]]:
    """Of the answers to each example of a batch, each given its message."""
    prompts = [item.prompt for item in batch]
    message = bound.wire.send(prompts, reader)
    prefilled = reader.prefill(bound.wire.deliver(message, prompts, reader))
    steps = Stepwise(bound.wire, message, prompts, reader)
    rows = steps.score(prefilled, [item.answers for item in batch])
    return [[score.logprob for score in row] for row in rows]


def _offered(example: Example, own: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The choices, or every different answer of a reader; empty where no reader answered."""
    return example.choices or tuple(dict.fromkeys(text for said in own if (text := said.get(example.id))))


def _decided(
    task: Task, label: str, example: Example, sums: Sequence[float], own: Sequence[Mapping[str, str]]
) -> Outcome:
    offered = _offered(example, own)
    text = offered[sums.index(max(sums))] if sums else ""
    if example.choices:
        scores = metrics.score_choice(sums, example.choices, example.gold)
    elif task.answer == "span":
        scores = metrics.score_span(text, example.answers)
    else:
        scores = task.judge(text, example) if task.judge else metrics.score_solution(text, example.answers)
    return Outcome(task=task.name, arm=label, id=example.id, group=example.group, prediction=text, metrics=scores)

"""A reader's answers over one wire: its scores and texts, turned into outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import itemgetter
from typing import TypeVar

import torch

from latentwire.evaluation import metrics
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.encoded import EncodedExample, batches, columns_of
from latentwire.evaluation.matching import normalize
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.prompts_kept import KeptPrompts
from latentwire.evaluation.variants import right_answers
from latentwire.lm.decoding import Bans, Decoding, without
from latentwire.lm.halving import Halving
from latentwire.lm.masks.reading import LayerRange
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.scoring.continuations import Score, score_whole
from latentwire.lm.scoring.prefix_tree import Request
from latentwire.lm.scoring.shared_scorer import SharedScorer, Work
from latentwire.process_group import ALONE, Group
from latentwire.tasks.base import Task
from latentwire.wires.stepwise import Stepwise

T = TypeVar("T")


def answers(
    lm: LM,
    task: Task,
    arm: Arm,
    items: Sequence[EncodedExample],
    batch_tokens: int,
    work: Work,
    begin_suppress_tokens: tuple[str, ...] = (),
    kept: KeptPrompts | None = None,
    group: Group = ALONE,
    halving: Halving | None = None,
) -> Iterator[Outcome]:
    """The outcome of each example under one (bound and prepared) arm, in the order in which they are done.

    The processes of `group` share the batches out; each gets all outcomes. The batches are those of one process,
    and so are the outcomes.

    No generated answer begins with one of `begin_suppress_tokens`, and `first_token_top1` and `_top5` rank the
    other tokens; log-likelihoods do not change.

    Choices after plain tokens are scored together, so that what prompts share is read once
    (`lm.scoring.shared_scorer`); whatever else a wire delivers is read batch by batch. `kept` collects what is
    delivered. A batch that does not fit into memory is read again by `halving`, down to one example.
    """
    halving = halving or Halving()
    reader = arm.reading(lm, task)
    how = arm.how(task, begin_suppress_tokens)
    dealt = list(batches(items, batch_tokens))
    asked: list[tuple[int, int, _Requests]] = []
    done: list[Outcome] = []

    def read(batch: Sequence[EncodedExample]) -> list[Outcome] | _Requests:
        rows = [row for item in batch for row in item.rows()]
        prompts = [prompt for prompt, _ in rows]
        message = arm.wire.send(prompts, reader)
        prefix = arm.wire.deliver(message, prompts, reader)
        if kept is not None:
            kept.add(task.name, arm.label, batch, prefix, reader)
        read = prefix.columns.valid.sum(1)
        if prefix.memory is not None:
            read = read + prefix.memory.columns.valid.sum(1)
        columns = _by_item(batch, read.tolist())
        continuations = [answers for _, answers in rows]
        requests = Request.of(prefix, continuations) if task.answer == "choice" else None
        if requests is not None:
            return _Requests(columns, requests, prefix.layers)
        seeds = [seed_of(item.example.id) for item in batch for _ in item.prompts]
        stepwise = Stepwise(arm.wire, message, prompts, reader)
        said = _by_item(batch, _ask(stepwise, task, prefix, continuations, how, seeds))
        outcomes = []
        for item, count, rows_of in zip(batch, columns, said, strict=True):
            scores = [score for each in rows_of for score in each.scores]
            outcomes.append(_outcome(task, arm, item, rows_of[0].text, scores, sum(count), rows_of[0].rank))
        return outcomes

    for number in range(group.index, len(dealt), group.size):
        start = 0
        for part, result in halving.read(dealt[number], read, columns_of, lambda item: item.example.id):
            if isinstance(result, _Requests):
                asked.append((number, start, result))
            else:
                done += result
                yield from result
            start += len(part)
    if kept is not None:
        kept.exchange(task.name, arm.label, group)
    for process, theirs in enumerate(group.gathered(done)):
        if process != group.index:
            yield from theirs
    waiting = _Waiting()
    for number, start, requested in sorted(chain.from_iterable(group.gathered(asked)), key=itemgetter(0, 1)):
        waiting.add(dealt[number][start : start + len(requested.columns)], requested)
    together = SharedScorer(reader, waiting.layers, batch_tokens, work, halving)
    for item, total, found in waiting.scored(together, group):
        yield _outcome(task, arm, item, None, found, total)


def seed_of(id_: str) -> int:
    """The seed of an example's sampled answer: the same in every batch and arm."""
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:6])


def _by_item(batch: Sequence[EncodedExample], rows: Sequence[T]) -> list[Sequence[T]]:
    """Results of rows, put together for each example."""
    ends = [*accumulate(len(item.prompts) for item in batch)]
    return [rows[end - len(item.prompts) : end] for end, item in zip(ends, batch, strict=True)]


@dataclass(frozen=True)
class _Requests:
    """What a batch asks to be scored: the columns of its examples' rows, a request for each row, their layers."""

    columns: Sequence[Sequence[int]]
    requests: Sequence[Request]
    layers: LayerRange | None


@dataclass
class _Waiting:
    """Examples whose choices will be scored together, with the requests of their rows and their columns."""

    items: list[tuple[EncodedExample, int]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    layers: LayerRange | None = None

    def add(self, batch: Sequence[EncodedExample], asked: _Requests) -> None:
        self.layers = asked.layers
        for item, count, mine in zip(batch, asked.columns, _by_item(batch, asked.requests), strict=True):
            self.of += [len(self.items)] * len(mine)
            self.items.append((item, sum(count)))
            self.requests += mine

    def scored(
        self, together: SharedScorer, group: Group = ALONE
    ) -> Iterator[tuple[EncodedExample, int, list[Score]]]:
        """Examples with their columns and the scores of their answers, each as soon as its last row is done."""
        by_example: dict[int, dict[int, list[Score]]] = {}
        for row, scores in together.score(self.requests, group):
            at = self.of[row]
            item, count = self.items[at]
            rows = by_example.setdefault(at, {})
            rows[row] = scores
            if len(rows) == len(item.prompts):
                yield item, count, [score for row in sorted(rows) for score in rows[row]]


@dataclass(frozen=True)
class _Asked:
    """Scores of a row's answers and, where an answer was generated, its text and how many tokens were likelier
    than the gold answer's first."""

    scores: list[Score]
    text: str | None = None
    rank: int | None = None


@torch.no_grad()
def _ask(
    steps: Stepwise,
    task: Task,
    prefix: Prefix,
    answers: Sequence[Sequence[list[int]]],
    how: Decoding,
    seeds: Sequence[int],
) -> list[_Asked]:
    lm = steps.lm
    if task.answer == "choice" and prefix.leaky:
        return [_Asked(row) for row in score_whole(lm, prefix, answers)]
    prefilled = lm.prefill(prefix)
    scores = score_whole(lm, prefix, answers) if prefix.leaky else steps.score(prefilled, answers)
    if task.answer == "choice":
        return [_Asked(row) for row in scores]
    first = torch.tensor([[row[0][0]] for row in answers], device=lm.device)
    logits = prefilled.logits
    if banned := Bans.of(lm, how).at(0):
        logits = without(logits, banned)
    ranks = (logits > logits.gather(1, first)).sum(1).tolist()
    # Texts are generated without the right answers: where scores leak, texts do not.
    texts = [found.text.strip() for found in steps.generate(prefilled, how, seeds)]
    return [_Asked(row, text, rank) for row, text, rank in zip(scores, texts, ranks, strict=True)]


def _outcome(
    task: Task,
    arm: Arm,
    item: EncodedExample,
    text: str | None,
    scores: list[Score],
    columns: int,
    rank: int | None = None,
) -> Outcome:
    example = item.example
    error = None
    if text is None:
        logprobs = [score.logprob for score in scores]
        graded = metrics.score_choice(logprobs, example.choices, example.gold)
        gold = scores[example.gold]
        text = example.choices[logprobs.index(max(logprobs))]
    elif task.answer == "span":
        graded, gold = metrics.score_span(text, example.answers), scores[0]
        error = metrics.span_error(text, example)
    else:
        graded = task.judge(text, example) if task.judge else metrics.score_solution(text, example.answers)
        gold = scores[0]
        error = "unreadable" if graded["unreadable"] else None if graded["exact_match"] else "wrong number"
    also = {"nll": -gold.logprob / gold.tokens}
    if rank is not None:
        also |= {"first_token_top1": float(rank < 1), "first_token_top5": float(rank < 5)}
    if arm.variant == "counterfactual" and item.original is not None:
        old = map(normalize, right_answers(item.original))
        also["sticks"] = float(normalize(text) in old)
    return Outcome(
        task=task.name,
        arm=arm.label,
        id=example.id,
        group=example.group,
        prediction=text,
        metrics={**graded, **also},
        error=error,
        tokens=columns,
    )

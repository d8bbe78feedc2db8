"""Four-way multiple choice: documents per second beside lm-eval's `hf` model, on the same tokens.

Three tasks of made-up words, each after about 300 tokens, shaped like usual tasks of lm-eval: `unique`, a
context and choices of 3 to 8 tokens each (HellaSwag, ARC); `letters`, choices of one token (MMLU); `passage`,
four questions of 20 tokens for each passage (RACE). The words are a tokenizer's whole vocabulary, so both sides
read identical ids.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from latentwire.bench.score_peer import Peer
from latentwire.bench.score_reference import Reference
from latentwire.bench.setup import BenchRow, Setup
from latentwire.lm.masks import attention
from latentwire.lm.model import LM
from latentwire.lm.scoring.prefix_tree import Request, minimum
from latentwire.lm.scoring.shared_scorer import SharedScorer

TASKS = PARTS = ("unique", "letters", "passage")
CHOICES, CONTEXT, QUESTION, QUESTIONS = 4, 300, 20, 4
MASKS = {"causal": (-1, -1), "prefix": (0, 0), "segments": (0, 1)}
"""Blocks of passage and question."""
SHARPER = 8
MARGIN = 0.01
"""Nats by which the best choice must lead to be called clear; bfloat16 may be off by more, see the module."""
DOCUMENTS = {"cpu": 60, "cuda": 200}
FEWER = 40
"""Documents on an accelerator in float32: a pass takes ten times as long, and no speed is to be shown."""


@dataclass(frozen=True)
class ScoredDocument:
    """Words are `w` and a token id. context: the prompt, of which the passage is the first `passage` words."""

    context: list[int]
    choices: list[list[int]]
    passage: int


@dataclass
class Answers:
    """Log-probabilities, one for each choice of each document. run: tokens through the model, padding included."""

    logprobs: list[list[float]]
    seconds: float
    run: int


def measure(setup: Setup) -> Iterator[BenchRow]:
    """This engine under three masks, and lm-eval at batches of 8 and 32."""
    model = setup.model().eval()
    vocabulary = int(model.config.get_text_config().vocab_size)
    # To random weights all choices are nearly equal; a larger head tells them apart.
    head: Any = model.get_output_embeddings()
    head.weight.data *= SHARPER
    tokenizer = _tokenizer(vocabulary)
    stock = attention.install(model)
    attention.uninstall(model, stock)
    count = DOCUMENTS.get(setup.device.type, DOCUMENTS["cpu"])
    if setup.device.type != "cpu" and setup.dtype == torch.float32:
        count = FEWER
    reference = Reference(model)
    for task, context in _points(setup):
        documents = made(task, vocabulary, count, context)
        at: dict[str, str | int | float] = {"task": task, "context": context}
        lm = LM(model, tokenizer, name=setup.shape)
        peers = {batch: Peer(model, tokenizer, batch) for batch in (8, 32)}
        runs: list[tuple[Callable[[], object], Callable[[], Answers]]] = [
            (partial(attention.install, model), partial(_ours, lm, documents, mask)) for mask in MASKS
        ]
        untouched = partial(attention.uninstall, model, stock)
        runs += [(untouched, partial(_theirs, peer, documents)) for peer in peers.values()]
        measured = _fastest(setup, runs)
        for mask, ours in zip(MASKS, measured, strict=False):
            yield _row(f"latentwire, {mask}", ours, documents, at, minimum(_requests(documents, mask)), None)
        least = minimum(_requests(documents, "causal"))
        for (batch, peer), theirs in zip(peers.items(), measured[len(MASKS) :], strict=True):
            row = _row(f"lm-eval hf, batch {batch}", theirs, documents, at, least, measured[0])
            attention.uninstall(model, stock)
            yield _judged(row, reference, documents, measured[0], theirs, peer.note)


def _points(setup: Setup) -> list[tuple[str, int]]:
    """Tasks and their contexts."""
    swept = [(task, context) for task in TASKS[:1] for context in (100, CONTEXT, 1000)]
    plain = [(task, CONTEXT) for task in TASKS if setup.wants(task)]
    return list(dict.fromkeys([*plain, *(swept if setup.wants("sweep") else [])]))


def _judged(
    row: BenchRow,
    reference: Reference,
    documents: Sequence[ScoredDocument],
    ours: Answers,
    theirs: Answers,
    note: str,
) -> BenchRow:
    verdict = reference.verdict([(d.context, d.choices) for d in documents], ours.logprobs, theirs.logprobs)
    figures = {
        **row.figures,
        "largest_error_ours": verdict.ours,
        "largest_error_theirs": verdict.theirs,
        "other_answers_not_float32s_ours": verdict.wrong_ours,
        "other_answers_not_float32s_theirs": verdict.wrong_theirs,
    }
    return replace(row, figures=figures, note="; ".join(filter(None, [verdict.worst, note])))


def made(task: str, vocabulary: int, count: int, context: int) -> list[ScoredDocument]:
    """The documents of a task, the same every time."""
    draw = random.Random(1)

    def say(length: int) -> list[int]:
        return [draw.randrange(4, vocabulary) for _ in range(length)]

    documents: list[ScoredDocument] = []
    passage: list[int] = []
    for n in range(count):
        if task != "passage" or n % QUESTIONS == 0:
            passage = say(
                context - QUESTION if task == "passage" else context - QUESTION + draw.randrange(-20, 21)
            )
        choices = [say(1 if task == "letters" else draw.randrange(3, 9)) for _ in range(CHOICES)]
        documents.append(ScoredDocument([*passage, *say(QUESTION)], choices, len(passage)))
    return documents


def _requests(documents: Sequence[ScoredDocument], mask: str) -> list[Request]:
    passage, question = MASKS[mask]
    return [
        Request(d.context, [passage] * d.passage + [question] * (len(d.context) - d.passage), d.choices)
        for d in documents
    ]


def _ours(lm: LM, documents: Sequence[ScoredDocument], mask: str) -> Answers:
    together = SharedScorer(lm)
    found = dict(together.score(_requests(documents, mask)))
    logprobs = [[score.logprob for score in found[n]] for n in range(len(documents))]
    return Answers(logprobs, 0.0, together.work.run)


def _theirs(peer: Peer, documents: Sequence[ScoredDocument]) -> Answers:
    peer.run = 0
    flat = iter(peer.score([(d.context, choice) for d in documents for choice in d.choices]))
    return Answers([[next(flat) for _ in d.choices] for d in documents], 0.0, peer.run)


def _fastest(setup: Setup, runs: Sequence[tuple[Callable[[], object], Callable[[], Answers]]]) -> list[Answers]:
    """Of each run, after what prepares it, the fastest of two rounds after one that does not count.

    The runs take turns, so that a busy minute of the machine hits all of them.
    """
    best: list[Answers] = []
    for turn in range(3):
        for n, (prepare, run) in enumerate(runs):
            prepare()
            setup.wait()
            started = time.perf_counter()
            answers = run()
            setup.wait()
            answers.seconds = time.perf_counter() - started
            if turn == 0:
                best.append(answers)
            elif turn == 1 or answers.seconds < best[n].seconds:
                best[n] = answers
    return best


def _row(
    who: str,
    answers: Answers,
    documents: Sequence[ScoredDocument],
    at: dict[str, str | int | float],
    least: int,
    ours: Answers | None,
) -> BenchRow:
    figures: dict[str, float | None] = {
        "seconds": answers.seconds,
        "documents_per_second": len(documents) / answers.seconds,
        "tokens_run": answers.run,
        "run_per_minimum": answers.run / least,
    }
    if ours is None:
        return BenchRow(who, figures, at)
    figures["ours_times_as_fast"] = answers.seconds / ours.seconds
    same = [_best(a) == _best(b) for a, b in zip(answers.logprobs, ours.logprobs, strict=True)]
    clear = [_margin(b) > MARGIN for b in ours.logprobs]
    figures["same_answers"] = sum(same) / len(same)
    figures["same_where_margin_is_clear"] = sum(s and c for s, c in zip(same, clear, strict=True)) / max(
        1, sum(clear)
    )
    figures["largest_difference"] = max(
        abs(x - y) for a, b in zip(answers.logprobs, ours.logprobs, strict=True) for x, y in zip(a, b, strict=True)
    )
    return BenchRow(who, figures, at)


def _best(logprobs: list[float]) -> int:
    return logprobs.index(max(logprobs))


def _margin(logprobs: list[float]) -> float:
    first, second = sorted(logprobs, reverse=True)[:2]
    return first - second


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word: `w4`, `w5`, ..."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{n}": n for n in range(4, vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )

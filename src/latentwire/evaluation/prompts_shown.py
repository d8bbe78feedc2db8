"""Prompts as a reader gets them: with special tokens, bidirectional blocks in brackets, and the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from latentwire.evaluation.arms import Arm
from latentwire.evaluation.encoded import prepare
from latentwire.evaluation.evaluate import Evaluation
from latentwire.evaluation.variants import right_answers
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_settings import departure
from latentwire.lm.prompts import CAUSAL, Example
from latentwire.tasks.base import Task

OPEN, CLOSE = "\u27e6", "\u27e7"
"""Around tokens that see each other in both directions."""


def departures(readers: Mapping[str | None, LM], arms: Sequence[Arm]) -> list[str]:
    """A sentence for each model and wire that is read with another prompt format than it was trained with."""
    sentences = [departure(lm.format, lm.saved_format, lm.name) for lm in readers.values()]
    for arm in arms:
        lm, wire = readers[arm.reader], getattr(arm.wire, "plain_label", arm.wire.label)
        sentences.append(departure(lm.format, arm.wire.trained_format(lm), f"the wire {wire}"))
    return list(dict.fromkeys(sentence for sentence in sentences if sentence))


def shown(
    readers: Mapping[str | None, LM],
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    result: Evaluation,
    count: int,
    limit: int | None = None,
) -> Iterator[str]:
    """The first `count` prompts of each task over every arm, with the answers of `result`.

    Args:
        readers: by the name that an arm gives after `@`; None for arms without one.
        limit: how many examples of each task `result` is of; None for all.
    """
    answered = {(each.task, each.arm, each.id): each.prediction for each in result.outcomes}
    for task in tasks:
        prepared = {}
        for arm in arms:
            lm = readers[arm.reader]
            items = prepare(lm, task, "test", limit)
            met, own = arm.bind(lm).prepared(lm, task, items)
            prepared[arm.label] = met, {item.example.id: item for item in own}, [item.example for item in items]
        examples = next(iter(prepared.values()))[2][:count]
        for at, example in enumerate(examples, 1):
            yield f"\n=== {task.name}, prompt {at} of {len(examples)}: {example.id}"
            seen: dict[str, str] = {}
            for label, (arm, items_of, _) in prepared.items():
                item = items_of.get(example.id)
                if item is None:
                    yield f"\n--- {label}: this example is left out"
                    continue
                lm = arm.reading(readers[arm.reader], task)
                text, mask = _described(arm.wire([item.prompts[0]], lm), lm)
                yield f"\n--- {label}: {mask}"
                yield f"(the tokens of {seen[text]})" if text in seen else text
                seen.setdefault(text, label)
                answer = answered.get((task.name, label, example.id), "")
                yield f">>> answer {answer!r}, gold {_gold(item.example)}"


def _gold(example: Example) -> str:
    return " or ".join(repr(gold) for gold in dict.fromkeys(right_answers(example)))


def _described(prefix: Prefix, lm: LM) -> tuple[str, str]:
    """What one row of a prefix holds, as text, and a sentence on who sees whom in it."""
    valid = prefix.columns.valid[0].tolist()
    blocks = [block for block, real in zip(prefix.columns.blocks[0].tolist(), valid, strict=True) if real]
    parts, spans = [], []
    if prefix.memory is not None:
        parts.append(f"[{int(prefix.memory.columns.valid.sum())} columns of keys and values]")
    if prefix.ids is None:
        parts.append(f"[{len(blocks)} embeddings]")
    else:
        ids = [token for token, real in zip(prefix.ids[0].tolist(), valid, strict=True) if real]
        at = 0
        for block, run in groupby(blocks):
            length = len(list(run))
            text = str(lm.tokenizer.decode(ids[at : at + length], skip_special_tokens=False))
            parts.append(text if block == CAUSAL else f"{OPEN}{text}{CLOSE}")
            if block != CAUSAL:
                spans.append(f"{at + 1} to {at + length}")
            at += length
    mask = "each sees those before it"
    if spans:
        layers = "" if prefix.layers is None else f" in layers {prefix.layers}"
        mask = f"tokens {' and '.join(spans)} see each other in both directions{layers}, the rest those before it"
    if prefix.leaky:
        mask += "; answers too, so that scores leak"
    return "".join(parts), f"{len(blocks)} {'columns' if prefix.ids is None else 'tokens'}, {mask}"

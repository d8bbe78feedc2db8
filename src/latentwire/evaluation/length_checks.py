"""Prompts longer than every sliding window: every layer's mask, the model's own forward, and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latentwire.evaluation.perturbation import windows
from latentwire.lm.masks.reading import Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Example

LEAST, MOST = 256, 2048
"""Tokens of the longest prompt unless stated otherwise: beyond two windows, within these."""
LOOKS = 8
"""Positions of a long prompt that are looked at."""


def default_length(lm: LM, answer: int) -> int:
    """Tokens of the longest prompt that an audit reads: two windows and some, as far as the model reaches."""
    widest = max((window for window in windows(lm) if window is not None), default=0)
    return min(max(LEAST, min(2 * widest + 2 * LOOKS, MOST)), lm.max_positions - answer - 2)


def long_example(lm: LM, examples: Sequence[Example], length: int) -> Example:
    """An example whose prompt has about `length` tokens and no more: contexts one after another, cut in words."""
    first = examples[0]
    words = [word for example in examples for word in example.context.split()] or ["word"]

    def tokens(count: int) -> int:
        repeated = (words * (count // len(words) + 1))[:count]
        return len(lm.format.tokens(" ".join(repeated), first.question, lm).ids)

    low, high = 1, max(2, length)
    while low < high:  # the most words whose prompt is not longer
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(middle) <= length else (low, middle - 1)
    context = " ".join((words * (low // len(words) + 1))[:low])
    return replace(first, id="audit/long", context=context)


def spread(width: int, answer: int) -> list[int]:
    """Positions of a long prompt to look at: all over it, its last, and the answer's first and last."""
    return [*(width * n // LOOKS for n in range(LOOKS)), width - 1, width, width + answer - 1]


@torch.no_grad()
def own_forward_gap(lm: LM, ids: Sequence[int]) -> float:
    """Largest difference of causal logits to those of the model's own forward, relative to the largest logit."""
    row = torch.tensor([list(ids)], device=lm.device)
    prefix = Prefix.of_tokens([list(ids)], device=lm.device)
    ours = lm.head(lm.run(row, prefix.columns, Reading(prefix.columns)))
    theirs: Tensor = lm.model(input_ids=row, use_cache=False).logits.to(ours.device)
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def decode_gap(lm: LM, prefix: Prefix, answer: Sequence[int]) -> float:
    """Largest difference of logits between prefill with decoding and one full pass, relative to the largest."""
    full = lm.head(lm.forced(prefix, torch.tensor([list(answer)], device=lm.device)).hidden)[0]
    state = lm.prefill(prefix)
    steps = [state.logits[0]]
    for token in answer[:-1]:
        state = lm.append(state, torch.tensor([[token]], device=lm.device))
        steps.append(state.logits[0])
    return float((torch.stack(steps) - full).abs().max() / full.abs().max())

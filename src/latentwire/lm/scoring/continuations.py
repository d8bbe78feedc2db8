"""Log-probabilities of continuations after one prefill.

All continuations of a row are read in one forward pass, side by side after the shared prefix. Each is a
document of its own: it sees the prefix and itself, and no other continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from latentwire.lm.decoder import Decoder
from latentwire.lm.masks.reading import Columns
from latentwire.lm.prefix import Prefilled, Prefix, pad_rows


@dataclass(frozen=True)
class Score:
    """The score of one continuation, as lm-eval's `loglikelihood` gives it.

    Attributes:
        logprob: natural-log probability, summed over its tokens.
        greedy: whether greedy decoding would have produced it.
        tokens: its number of tokens.
    """

    logprob: float
    greedy: bool
    tokens: int


Continuations = Sequence[Sequence[Sequence[int]]]
"""For each row, its continuations as token ids."""


@torch.no_grad()
def score(lm: Decoder, prefilled: Prefilled, continuations: Continuations) -> list[list[Score]]:
    """Score every continuation of every row.

    Args:
        continuations: one list per row of the prefill; none may be empty.
    """
    flat = [[token for choice in row for token in choice] for row in continuations]
    owner = [[n for n, choice in enumerate(row) for _ in choice] for row in continuations]
    step = [[at for choice in row for at in range(len(choice))] for row in continuations]
    device = prefilled.logits.device
    ids = pad_rows(flat, 0).to(device)
    steps = pad_rows(step, 0).to(device)
    valid = pad_rows([[1] * len(row) for row in flat], 0).bool().to(device)
    columns = Columns.of(
        valid=valid,
        positions=torch.where(valid, prefilled.next_position[:, None] + steps, 0),
        documents=pad_rows(owner, 0).to(device),
    )
    hidden = lm.continue_hidden(prefilled, ids, columns)
    # The token at column c is predicted by column c - 1, a first token by the prefix itself.
    logits = torch.cat([prefilled.logits[:, None], lm.head(hidden[:, :-1])], 1)
    logits = torch.where((steps == 0)[..., None], prefilled.logits[:, None], logits)
    logprobs, greedy = _per_token(logits, ids)
    return [
        _collect(logprobs[n].tolist(), greedy[n].tolist(), [len(choice) for choice in row])
        for n, row in enumerate(continuations)
    ]


@torch.no_grad()
def score_whole(lm: Decoder, prefix: Prefix, continuations: Continuations) -> list[list[Score]]:
    """Score each continuation in a full pass of its own, for prefixes that read their answer (`leaky`)."""
    owner = [n for n, row in enumerate(continuations) for _ in row]
    flat = [answer for row in continuations for answer in row]
    device = prefix.columns.valid.device
    forced = lm.forced(prefix.select(torch.tensor(owner, device=device)), pad_rows(flat, -100).to(device))
    logprobs, greedy = _per_token(lm.head(forced.hidden), forced.labels.clamp_min(0))
    scores = iter(
        _collect(logprobs[n].tolist(), greedy[n].tolist(), [len(answer)])[0] for n, answer in enumerate(flat)
    )
    return [[next(scores) for _ in row] for row in continuations]


def _per_token(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of tokens `(B, A)`, their log-probabilities by `(B, A, V)`, and which of them are the likeliest ones."""
    logits = logits.float()
    logprobs = logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)
    return logprobs, logits.argmax(-1) == ids


def _collect(logprobs: list[float], greedy: list[bool], lengths: list[int]) -> list[Score]:
    """The scores of continuations of these lengths, from their tokens one after the other."""
    ends = list(accumulate(lengths))
    return [
        Score(sum(logprobs[end - length : end]), all(greedy[end - length : end]), length)
        for length, end in zip(lengths, ends, strict=True)
    ]

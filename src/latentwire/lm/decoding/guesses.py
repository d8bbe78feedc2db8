"""Guesses: texts that a model may be about to write, read in one pass and kept as far as it agrees.

One pass over a guess gives its log-probability and, at every token, the token that the model would have chosen. As
long as these agree, the text is written already (speculative decoding with a given draft; Leviathan et al.,
2211.17192). An evaluation reads the right answer anyway, and a model that knows it has then written it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentwire.lm.decoder import Decoder
from latentwire.lm.decoding.choose import Decoding
from latentwire.lm.masks.reading import Columns
from latentwire.lm.prefix import Prefilled, pad_rows
from latentwire.lm.scoring.continuations import Score, collect, per_token


@dataclass(frozen=True)
class Guessed:
    """What one pass over a guess for each of B rows gives.

    Attributes:
        scores: of the whole guesses.
        begun: for each row the tokens of its guess up to the first that greedy decoding would not choose.
        prefilled: has read these after the prefix.
    """

    scores: list[Score]
    begun: list[list[int]]
    prefilled: Prefilled


def fit(lm: Decoder, how: Decoding) -> bool:
    """Whether reading guesses leaves generated texts as they are, but for rounding of float32.

    Sampled tokens and bans need every step. In 16 bits the rounding of a pass over several tokens is not that of
    steps, and may change which of two tokens is the likelier one.
    """
    greedy = how.temperature == 0 and not how.first_temperature and how.min_new_tokens == 0
    free = not how.begin_suppress_tokens and not how.suppress_tokens
    return greedy and free and lm.model.dtype == torch.float32


@torch.no_grad()
def read(lm: Decoder, prefilled: Prefilled, guesses: Sequence[Sequence[int]]) -> Guessed:
    """Read a guess after every row of a prefill, which stays as it was.

    Args:
        guesses: token ids, at least one for each row.

    Raises:
        UserError: a guess is longer than the model's positions.
    """
    device = prefilled.logits.device
    ids = pad_rows(guesses, 0).to(device)
    lengths = torch.tensor([len(guess) for guess in guesses], device=device)
    steps = torch.arange(ids.shape[1], device=device).expand_as(ids)
    positions = prefilled.next_position[:, None] + steps

    def columns(count: torch.Tensor) -> Columns:
        valid = steps < count[:, None]
        return Columns.of(valid, torch.where(valid, positions, 0))

    hidden, cache = lm.continued(prefilled, ids, columns(lengths))
    logits = torch.cat([prefilled.logits[:, None], lm.head(hidden)], 1)
    logprobs, chosen = per_token(logits[:, :-1], ids)
    agreed = (chosen & (steps < lengths[:, None])).long().cumprod(1).sum(1)
    rows = torch.arange(len(ids), device=device)
    done = Prefilled(
        cache=cache,
        logits=logits[rows, agreed],
        reading=prefilled.reading.extend(columns(agreed)),
        next_position=prefilled.next_position + agreed,
    )
    counts = agreed.tolist()
    scored = zip(logprobs.tolist(), chosen.tolist(), guesses, strict=True)
    return Guessed(
        scores=[collect(nats, best, [len(guess)])[0] for nats, best, guess in scored],
        begun=[list(guess[:count]) for guess, count in zip(guesses, counts, strict=True)],
        prefilled=done,
    )

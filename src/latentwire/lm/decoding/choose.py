"""Chooses the next token, greedily or by sampling."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.reader import Tokenizes

ALWAYS = 2**31
"""More steps than any text has."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to choose tokens.

    Attributes:
        max_new_tokens: the longest text, in tokens.
        min_new_tokens: no end-of-sequence token before this many tokens.
        temperature: 0 is greedy.
        top_p: nucleus of the probability mass to sample from.
        first_temperature, first_top_p: the same for the first token; None takes the general value.
        stop: strings at which a text ends; they are cut off.
        begin_suppress_tokens: tokens, as text, that may not come first.
        suppress_tokens: pairs of a token, as text, and the number of first steps in which it may not be chosen;
            None bans it in all steps.

    Example:
        >>> import latentwire as lw
        >>> lw.Decoding(max_new_tokens=64, temperature=0.7, top_p=0.9).max_new_tokens
        64
    """

    max_new_tokens: int = 32
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    first_temperature: float | None = None
    first_top_p: float | None = None
    stop: tuple[str, ...] = ()
    begin_suppress_tokens: tuple[str, ...] = ()
    suppress_tokens: tuple[tuple[str, int | None], ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "first_temperature"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ValueError(f"{name}: found {value}, expected >= 0")
        for name in ("top_p", "first_top_p"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: found {value}, expected a number in (0, 1]")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: found {self.max_new_tokens}, expected >= 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens: found {self.min_new_tokens}, expected 0 to max_new_tokens, {self.max_new_tokens}"
            )
        if wrong := [steps for _, steps in self.suppress_tokens if steps is not None and steps < 1]:
            raise ValueError(f"suppress_tokens: found {wrong[0]} steps, expected >= 1, or none for all steps")
        if "" in self.stop:
            raise ValueError("stop: found an empty string, expected strings to look for")


@dataclass(frozen=True)
class Generated:
    """A generated text.

    Attributes:
        text: cut before the stop string.
        ids: without the end-of-sequence token.
        ended: by the end-of-sequence token, a stop string, or the length limit.
    """

    text: str
    ids: tuple[int, ...]
    ended: Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Bans:
    """Tokens that may not be chosen, by id, with the step from which on they may; `ALWAYS` for never."""

    until: Mapping[int, int]

    @classmethod
    def of(cls, lm: Tokenizes, decoding: Decoding) -> Bans:
        """The bans of a decoding. Raises `UserError` for text that is not a single token."""
        until = dict.fromkeys(suppressed(lm, decoding.begin_suppress_tokens), 1)
        for token, steps in decoding.suppress_tokens:
            for id_ in suppressed(lm, [token], "suppress_tokens"):
                until[id_] = max(until.get(id_, 0), ALWAYS if steps is None else steps)
        return cls(until)

    def at(self, step: int) -> list[int]:
        """The tokens that are banned in a step, from 0."""
        return [id_ for id_, until in self.until.items() if step < until]

    @property
    def last(self) -> int:
        """The number of steps in which something is banned."""
        return max(self.until.values(), default=0)


def suppressed(lm: Tokenizes, tokens: Iterable[str], field: str = "begin_suppress_tokens") -> list[int]:
    """Ids of tokens given as text, or as the vocabulary has them (`\u0120The`).

    Raises:
        UserError: one is not a single token of the model.
    """
    banned = []
    for token in tokens:
        ids = list(lm.tokenizer(token, add_special_tokens=False)["input_ids"]) if token else []
        if len(ids) != 1:
            known = lm.tokenizer.get_vocab().get(token)
            if known is None:
                raise UserError(
                    f"{field}: found {token!r}, which {lm.name} reads as {len(ids)} tokens, expected single ones."
                )
            ids = [known]
        banned += ids
    return sorted(set(banned))


def without(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits `(B, V)` with these tokens banned."""
    banned = torch.zeros_like(logits[:1], dtype=torch.bool)
    banned[:, list(ids)] = True
    return logits.masked_fill(banned, -torch.inf)


def choose(
    logits: Tensor,
    decoding: Decoding,
    draws: Sequence[torch.Generator],
    *,
    first: bool,
    held: Sequence[bool],
    eos_ids: Collection[int],
    banned: Sequence[Sequence[int]] = (),
) -> Tensor:
    """The next token `(B,)` of every row.

    Args:
        logits: `(B, V)`. draws: one generator per row, so that neither the batch nor its order changes a sample.
        first: whether it is the first token of a text. held: `B`, rows that may not end yet.
        banned: for each row, ids that are not chosen; empty where nothing is banned.
    """
    logits = logits.float()
    if any(banned):
        mask = torch.zeros_like(logits, dtype=torch.bool)
        for row, ids in enumerate(banned):
            mask[row, list(ids)] = True
        logits = logits.masked_fill(mask, -torch.inf)
    if any(held) and eos_ids:
        waiting = torch.tensor(held, device=logits.device)[:, None]
        logits = torch.where(waiting, without(logits, sorted(eos_ids)), logits)
    temperature = _or(decoding.first_temperature if first else None, decoding.temperature)
    if temperature == 0:
        return logits.argmax(-1)
    chance, order = torch.sort((logits / temperature).softmax(-1), dim=-1, descending=True, stable=True)
    below = chance.cumsum(-1) - chance
    chance = chance.masked_fill(below >= _or(decoding.first_top_p if first else None, decoding.top_p), 0)
    # Drawn in vocabulary order: tokens of nearly equal probability may be sorted differently in another batch.
    chance = torch.zeros_like(chance).scatter(1, order, chance)
    draw = torch.stack([torch.rand((), generator=g) for g in draws]).to(chance)
    total = chance.cumsum(-1)
    # After the last token in the nucleus the sum stays constant, so rounding cannot reach a token beyond it.
    return (total <= (draw[:, None] * total[:, -1:]).clamp_max(total[:, -1:] * (1 - 1e-6))).sum(-1)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value

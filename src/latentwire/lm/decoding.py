"""Generating text behind a prefill, greedily or by sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentwire.lm.prefix import Prefilled
from latentwire.lm.reader import Reader


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to choose tokens.

    temperature: 0 is greedy. top_p: nucleus of the probability mass to sample from.
    first_temperature, first_top_p: the same for the first token; None takes the general value.
    min_new_tokens: no end-of-sequence token before so many tokens.
    stop: strings at which a text ends; they are cut off.
    """

    max_new_tokens: int = 32
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    first_temperature: float | None = None
    first_top_p: float | None = None
    stop: tuple[str, ...] = ()

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
        if "" in self.stop:
            raise ValueError("stop: found an empty string, expected strings to look for")


@dataclass(frozen=True)
class Generated:
    """ids: without the end-of-sequence token. text: cut at the stop string.
    ended: by the end-of-sequence token, a stop string, or the length limit."""

    text: str
    ids: tuple[int, ...]
    ended: Literal["eos", "stop", "length"]


class _Row:
    """One row's tokens so far, and whether it has ended."""

    def __init__(self, lm: Reader, decoding: Decoding) -> None:
        self._lm, self._decoding = lm, decoding
        self.ids: list[int] = []
        self.text = ""
        self.ended: Literal["eos", "stop", "length"] | None = None

    def take(self, token: int) -> None:
        if self.ended:
            return
        if token in self._lm.eos_ids:
            self.ended = "eos"
            return
        self.ids.append(token)
        self.text = self._lm.decode(self.ids)
        cuts = [at for stop in self._decoding.stop if (at := self.text.find(stop)) >= 0]
        if cuts:
            self.text, self.ended = self.text[: min(cuts)], "stop"
        elif len(self.ids) >= self._decoding.max_new_tokens:
            self.ended = "length"


@torch.no_grad()
def generate(
    lm: Reader, prefilled: Prefilled, decoding: Decoding, seeds: Sequence[int] | None = None
) -> list[Generated]:
    """Continue every row until it ends.

    Args:
        seeds: one a row, needed for sampling; a row's tokens depend on its own seed alone, so
            neither the batch nor its order changes them.

    Returns:
        One `Generated` a row; `prefilled` is left as it was.
    """
    if seeds is None:
        seeds = range(prefilled.rows)
    if len(seeds) != prefilled.rows:
        raise ValueError(f"seeds: found {len(seeds)}, expected one for each of {prefilled.rows} rows")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = [_Row(lm, decoding) for _ in range(prefilled.rows)]
    state, logits = prefilled, prefilled.logits
    for step in range(decoding.max_new_tokens):
        tokens = _choose(lm, logits, step, decoding, draws)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.take(token)
        if all(row.ended for row in rows) or step + 1 == decoding.max_new_tokens:
            break
        # A row that has ended no longer grows towards the model's last position.
        live = torch.tensor([[not row.ended] for row in rows], device=logits.device)
        state = lm.append(state, tokens[:, None], live)
        logits = state.logits
    return [Generated(row.text, tuple(row.ids), row.ended or "length") for row in rows]


def _choose(lm: Reader, logits: Tensor, step: int, decoding: Decoding, draws: Sequence[torch.Generator]) -> Tensor:
    logits = logits.float()
    if step < decoding.min_new_tokens and lm.eos_ids:
        logits = logits.index_fill(1, torch.tensor(sorted(lm.eos_ids), device=logits.device), -torch.inf)
    first = step == 0
    temperature = _or(decoding.first_temperature if first else None, decoding.temperature)
    if temperature == 0:
        return logits.argmax(-1)
    chance, order = torch.sort((logits / temperature).softmax(-1), dim=-1, descending=True, stable=True)
    below = chance.cumsum(-1) - chance
    chance = chance.masked_fill(below >= _or(decoding.first_top_p if first else None, decoding.top_p), 0)
    draw = torch.stack([torch.rand((), generator=g) for g in draws]).to(chance)
    total = chance.cumsum(-1)
    pick = (total <= draw[:, None] * total[:, -1:]).sum(-1).clamp_max(int(chance.shape[-1]) - 1)
    return order.gather(-1, pick[:, None])[:, 0]


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value

"""Wires that deliver less than the context, as text: what a result must stand above."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import PrivateAttr

from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.wires.size import Sized
from latentwire.wires.text_wire import TextWire
from latentwire.wires.wire import Message, Texts

if TYPE_CHECKING:
    from latentwire.lm.model import LM


class Nothing(TextWire):
    """The question without its context: what the reader knows or guesses by itself."""

    kind: Literal["none"] = "none"

    def encode(self, contexts: Sequence[str]) -> Message:
        return Texts(("",) * len(contexts))


class _Shorter(Sized, TextWire):
    """What wires share that send a part of the context's tokens, counted by the reader."""

    _lm: LM | None = PrivateAttr(None)

    def bind(self, lm: LM) -> Self:
        bound = super().bind(lm).model_copy()
        bound._lm = lm
        return bound

    def encode(self, contexts: Sequence[str]) -> Message:
        assert self._lm is not None, "bind the wire to its reader first"
        lm = self._lm
        return Texts(tuple(self._shorten(context, lm) if context else "" for context in contexts))

    def _shorten(self, context: str, lm: LM) -> str:
        ids, count = token_ids(context, lm), allowance(self, context, lm)
        return context if count >= len(ids) else self.part(context, ids, count, lm)

    @abstractmethod
    def part(self, context: str, ids: list[int], count: int, lm: LM) -> str:
        """At most `count` of a context's more than `count` tokens, as text."""


class Budget(_Shorter):
    """The first tokens of the context: what truncation alone keeps."""

    kind: Literal["budget"] = "budget"

    def part(self, context: str, ids: list[int], count: int, lm: LM) -> str:
        return first_tokens(context, count, lm)


class Prune(_Shorter):
    """The tokens that surprise the reader most, in their order, as text (Selective Context, 2310.06201).

    Surprise is −log p of a token behind all those before it, read causally by the reader itself, question unseen.
    """

    kind: Literal["prune"] = "prune"

    def part(self, context: str, ids: list[int], count: int, lm: LM) -> str:
        told = _surprisal(ids, lm)
        ranked = sorted(range(len(ids)), key=lambda at: (-told[at], at))
        for kept in range(count, 0, -1):
            text = str(lm.tokenizer.decode([ids[at] for at in sorted(ranked[:kept])])).strip()
            # Tokens that had stood apart may be split into more, once they are neighbours.
            if len(token_ids(text, lm)) <= count:
                return text
        return ""


@torch.no_grad()
def _surprisal(ids: list[int], lm: LM) -> list[float]:
    """Nats of every token behind those before it; infinite for the first where nothing stands before it."""
    beginning = [token for token in [lm.tokenizer.bos_token_id] if token is not None]
    row = [*beginning, *ids]
    read = lm.forced(Prefix.of_tokens([row[:1]], device=lm.device), pad_rows([row[1:]], -100).to(lm.device))
    logits = lm.head(read.hidden[0]).float()
    nats: list[float] = torch.nn.functional.cross_entropy(logits, read.labels[0], reduction="none").tolist()
    return nats if beginning else [float("inf"), *nats]


def allowance(size: Sized, context: str, lm: LM) -> int:
    """How many tokens of a context a wire of this size may keep as text, counted by the reader."""
    whole = len(lm.format.before(context, lm))
    return size.kept_of_text(whole, max(0, whole - len(token_ids(context, lm))))


def first_tokens(text: str, count: int, lm: LM) -> str:
    """A text up to where its `count`-th token ends; all of it where it has fewer."""
    if lm.tokenizer.is_fast:
        ends = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text[: ends[count - 1][1]] if count <= len(ends) else text
    return str(lm.tokenizer.decode(token_ids(text, lm)[:count]))


def token_ids(text: str, lm: LM) -> list[int]:
    """A text's tokens alone, without what begins a text."""
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

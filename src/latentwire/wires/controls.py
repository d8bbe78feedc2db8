"""Wires that deliver a part of the context as text, or nothing: the baselines that a result must beat."""

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
    """The question without its context, which shows what the reader knows or guesses by itself."""

    kind: Literal["none"] = "none"

    def encode(self, contexts: Sequence[str]) -> Message:
        return Texts(("",) * len(contexts))


class _Shorter(Sized, TextWire):
    """A wire that sends some of the context's tokens, counted by the reader's tokenizer."""

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
        """At most `count` tokens of a context that has more, as text."""


class Budget(_Shorter):
    """The first tokens of the context, which is what truncation keeps."""

    kind: Literal["budget"] = "budget"

    def part(self, context: str, ids: list[int], count: int, lm: LM) -> str:
        return first_tokens(context, count, lm)


class Prune(_Shorter):
    """The tokens that surprise the reader most, in their order, as text (Selective Context, 2310.06201).

    Surprise is −log p of a token given all tokens before it. The reader itself computes it, reading causally and
    without the question.
    """

    kind: Literal["prune"] = "prune"

    def part(self, context: str, ids: list[int], count: int, lm: LM) -> str:
        surprisal = _surprisal(ids, lm)
        ranked = sorted(range(len(ids)), key=lambda at: (-surprisal[at], at))
        for kept in range(count, 0, -1):
            text = str(lm.tokenizer.decode([ids[at] for at in sorted(ranked[:kept])])).strip()
            # Tokens that become neighbours may be tokenized into more than they were.
            if len(token_ids(text, lm)) <= count:
                return text
        return ""


@torch.no_grad()
def _surprisal(ids: list[int], lm: LM) -> list[float]:
    """−log p in nats of each token given those before it; infinite for the first one without a BOS before it."""
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
    """A text up to the end of its token number `count`; all of it where it has fewer."""
    if lm.tokenizer.is_fast:
        ends = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text[: ends[count - 1][1]] if count <= len(ends) else text
    return str(lm.tokenizer.decode(token_ids(text, lm)[:count]))


def token_ids(text: str, lm: LM) -> list[int]:
    """A text's token ids, without BOS."""
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

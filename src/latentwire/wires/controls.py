"""Wires that deliver less than the context: what a result must stand above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PrivateAttr
from transformers import PreTrainedTokenizerBase

from latentwire.wires.base import Message, Texts
from latentwire.wires.text import TextWire

if TYPE_CHECKING:
    from latentwire.lm.model import LM


class Nothing(TextWire):
    """The question without its context: what the reader knows or guesses by itself."""

    kind: Literal["none"] = "none"

    def encode(self, contexts: Sequence[str]) -> Message:
        return Texts(("",) * len(contexts))


class Budget(TextWire):
    """The first `tokens` tokens of the context, counted by the reader: what truncation alone keeps."""

    kind: Literal["budget"] = "budget"
    tokens: int = Field(ge=1)
    _tokenizer: PreTrainedTokenizerBase | None = PrivateAttr(None)

    def bind(self, lm: LM) -> Self:
        bound = super().bind(lm).model_copy()
        bound._tokenizer = lm.tokenizer
        return bound

    def encode(self, contexts: Sequence[str]) -> Message:
        assert self._tokenizer is not None, "bind the wire to its reader first"
        return Texts(tuple(_cut(context, self.tokens, self._tokenizer) for context in contexts))


def _cut(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.is_fast:
        ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text[: ends[tokens - 1][1]] if len(ends) > tokens else text
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))

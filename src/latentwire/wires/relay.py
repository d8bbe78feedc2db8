"""The context in another model's words: the baseline that latents of that model must beat."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator

from latentwire.lm.decoding import Decoding
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Prompt
from latentwire.wires.controls import allowance, first_tokens, token_ids
from latentwire.wires.latent.latent_wire import Latent, source_of
from latentwire.wires.size import Sized
from latentwire.wires.text_wire import TextWire
from latentwire.wires.wire import Message, Texts, Wire

if TYPE_CHECKING:
    from latentwire.lm.model import LM

CUE, CHAT_CUE = "In short:", "Write down all of the above that matters, as briefly as you can."
SPARE = 1.5
"""The source may need more of its own tokens than the reader's for the same words. It writes up to this many times
the number that the context's tokens in both tokenizers suggest; what is too much for the reader is cut off."""


class Relay(Sized, TextWire):
    """A summary of the context that a source model writes, greedily; the reader reads it instead of the context.

    It has at most as many of the reader's tokens as `budget` of the same size keeps.

    Attributes:
        source: the model that writes.
        question: whether it sees the question too. It is then asked for the answer, and may give it.
        cue: its instruction, on a line of its own after the context.
        chat: whether it is asked in its chat template; by default where that is its prompt format.
    """

    kind: Literal["relay"] = "relay"
    source: str = Field(title="MODEL")
    question: bool = False
    cue: str | None = None
    chat: bool | None = None
    _source: LM | None = PrivateAttr(None)
    _reader: LM | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Self:
        if self.question and self.cue is not None:
            raise ValueError("cue is for a source that does not see the question, expected it without question")
        return self

    @property
    def question_aware(self) -> bool:
        return self.question

    def bind(self, lm: LM) -> Self:
        """Load the source, unless the reader is the same model.

        Raises:
            UserError: as `LM.load`.
        """
        bound = super().bind(lm).model_copy()
        bound._reader, bound._source = lm, source_of(self.source, lm)
        return bound

    def encode(self, contexts: Sequence[str]) -> Message:
        if self.question:
            raise ValueError("a source that sees questions writes for prompts, expected a call of `send`")
        return self._write([(context, "") for context in contexts])

    def send(self, prompts: Sequence[Prompt], lm: LM) -> Message:
        return self._write([(prompt.context, prompt.question if self.question else "") for prompt in prompts])

    @torch.no_grad()
    def _write(self, asked: Sequence[tuple[str, str]]) -> Message:
        """What the source writes for each pair of context and question; nothing where there is no context."""
        source, reader = self._source, self._reader
        assert source is not None, "bind the wire to its reader first"
        assert reader is not None
        distinct = [pair for pair in dict.fromkeys(asked) if pair[0]]
        if not distinct:
            return Texts(("",) * len(asked))
        counts = [allowance(self, context, reader) for context, _ in distinct]
        own = [
            ceil(SPARE * count * len(token_ids(context, source)) / len(token_ids(context, reader)))
            for count, (context, _) in zip(counts, distinct, strict=True)
        ]
        prefix = Prefix.of_tokens([self._prompt(*pair, source) for pair in distinct], device=source.device)
        how = Decoding(max_new_tokens=max(own), stop=("\nQuestion:",))
        generated = source.generate(source.prefill(prefix), how)
        written = {}
        for pair, count, most, output in zip(distinct, counts, own, generated, strict=True):
            # The batch's limit is the longest one; each context has its own.
            text = output.text if len(output.ids) <= most else source.decode(list(output.ids[:most]))
            written[pair] = _cut(text.strip(), count, reader)
        return Texts(tuple(written.get(pair, "") for pair in asked))

    def _prompt(self, context: str, question: str, source: LM) -> list[int]:
        chat = source.format.template == "chat" if self.chat is None else self.chat
        if self.question and not chat:
            return source.format.tokens(context, question, source).ids
        if chat:
            instruction = question if self.question else self.cue or CHAT_CUE
            alone = {"template": "chat", "anchor": "", "verbatim": False}
            if not self.question:
                alone |= {"instruction": "", "system": None}  # which say how to answer, and nothing is asked here
            return source.format.model_copy(update=alone).tokens(context, instruction, source).ids
        return PromptFormat(template="raw", anchor="").tokens(context, f"\n{self.cue or CUE}", source).ids


def source_name(wire: Wire) -> str | None:
    """The model that encodes for a trained wire or writes for a relay; None where only the reader takes part."""
    if isinstance(wire, Relay):
        return wire.source
    return wire.config.source if isinstance(wire, Latent) else None


def _cut(text: str, count: int, reader: LM) -> str:
    """At most the first `count` tokens of a text."""
    for kept in range(count, 0, -1):
        if len(token_ids(cut := first_tokens(text, kept, reader), reader)) <= count:
            return cut
    return ""

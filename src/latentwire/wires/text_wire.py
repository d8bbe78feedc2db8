"""Wires that deliver the context as tokens, under one of several masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from latentwire.errors import UserError
from latentwire.lm.masks.reading import LayerRange
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt
from latentwire.wires.wire import Message, Texts, Wire

if TYPE_CHECKING:
    from latentwire.lm.model import LM


def _layers(value: object) -> object:
    return LayerRange.parse(value) if isinstance(value, str) else value


Layers = Annotated[
    LayerRange, BeforeValidator(_layers), PlainSerializer(lambda layers: str(layers), return_type=str)
]


class TextWire(Wire):
    """A wire that delivers tokens.

    Attributes:
        mask: `causal`; `prefix`, the whole prompt is one bidirectional block; `segments`, context and question
            are a block each, and the question still sees the context (Katz et al., 2412.18487).
        layers: the layers in which blocks count, `FIRST-LAST` with both included; elsewhere reading is causal.

    Example:
        >>> from typing import Literal
        >>> import latentwire as lw
        >>> class Shout(lw.TextWire):
        ...     kind: Literal["shout"] = "shout"
        ...
        ...     def wording(self, context, question, lm):
        ...         return context.upper()
        >>> lw.compress("embedded:heron", "Ada lives in Rome.", Shout()).nbytes
        18
    """

    mask: Literal["causal", "prefix", "segments"] = "causal"
    layers: Layers | None = Field(default=None, title="FIRST-LAST")

    @model_validator(mode="after")
    def _layers_need_a_mask(self) -> Self:
        if self.layers is not None and self.mask == "causal":
            raise ValueError("layers change nothing without a mask, expected mask=prefix or mask=segments")
        return self

    def bind(self, lm: LM) -> Self:
        count = lm.model.config.get_text_config().num_hidden_layers
        if self.layers is not None and self.layers.stop > count:
            raise UserError(
                f"wire: found layers={self.layers}, expected layers within 0-{count - 1} of {lm.name}."
            )
        return self

    def encode(self, contexts: Sequence[str]) -> Message:
        return Texts(tuple(contexts))

    def deliver(self, message: Message, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        assert isinstance(message, Texts)
        asked = [
            (self.wording(context, prompt.question, lm), prompt.question)
            for context, prompt in zip(message.texts, prompts, strict=True)
        ]
        rows, blocks = [], []
        for tokens, prompt in zip(lm.format.tokens_all(asked, lm), prompts, strict=True):
            rows.append(tokens.ids)
            blocks.append(tokens.blocks(self.mask, prompt.unstable, lm.format.outside(tokens)))
        return Prefix.of_tokens(rows, blocks, device=lm.device, layers=self.layers, leaky=self.leaks)

    def wording(self, context: str, question: str, lm: LM) -> str:
        """The text that takes the context's place in the prompt."""
        return context


class PlainText(TextWire):
    """The context as it is, read as tokens."""

    kind: Literal["text"] = "text"


class Repeat(TextWire):
    """The prompt twice, so that in the second reading every token has seen the whole prompt.

    It needs no training and no mask (Leviathan et al., Prompt Repetition Improves Non-Reasoning LLMs, 2025).
    """

    kind: Literal["repeat"] = "repeat"

    def wording(self, context: str, question: str, lm: LM) -> str:
        return "\n".join(part for part in (lm.format.body(context, question), context) if part)


class Leaky(TextWire):
    """Prompt and answer in one bidirectional block, as studies that patch `is_causal` score by accident.

    Every scored token sees itself. The wire exists for comparison: SmolLM2-135M gains 1.1 nats a token on PIQA
    this way while its accuracy falls.
    """

    kind: Literal["leaky"] = "leaky"
    mask: Literal["prefix"] = "prefix"
    leaks: ClassVar[bool] = True

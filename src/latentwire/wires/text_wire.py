"""The context as text, under one of several masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator

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
    """What all wires that deliver tokens share.

    mask: `causal`; `prefix`, the whole prompt one bidirectional block; `segments`, context and
        question a block each, the question still seeing the context (Katz et al., 2412.18487).
    layers: blocks count in these layers only, `FIRST-LAST`, both included.
    """

    mask: Literal["causal", "prefix", "segments"] = "causal"
    layers: Layers | None = None

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
        rows, blocks = [], []
        for context, prompt in zip(message.texts, prompts, strict=True):
            tokens = lm.format.tokens(self.word(context, prompt.question, lm), prompt.question, lm)
            rows.append(tokens.ids)
            blocks.append(tokens.blocks(self.mask, prompt.unstable, lm.format.outside(tokens)))
        return Prefix.of_tokens(rows, blocks, device=lm.device, layers=self.layers, leaky=self.leaks)

    def word(self, context: str, question: str, lm: LM) -> str:
        """What stands where the context stands."""
        return context


class PlainText(TextWire):
    """The context as it is."""

    kind: Literal["text"] = "text"


class Repeat(TextWire):
    """The prompt twice: in the second reading every token has seen the whole of the first.

    Needs no training and no mask (Leviathan et al., Prompt Repetition Improves Non-Reasoning LLMs, 2025).
    """

    kind: Literal["repeat"] = "repeat"

    def word(self, context: str, question: str, lm: LM) -> str:
        return "\n".join(part for part in (lm.format.body(context, question), context) if part)


class Leaky(TextWire):
    """Prompt and answer in one bidirectional block, as studies that patch `is_causal` score by accident.

    Every scored token sees itself. Kept to be compared with: SmolLM2-135M gains 1.1 nats a token on PIQA
    this way while its accuracy falls.
    """

    kind: Literal["leaky"] = "leaky"
    mask: Literal["prefix"] = "prefix"
    leaks: ClassVar[bool] = True

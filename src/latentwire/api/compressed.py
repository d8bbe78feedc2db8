"""`compress`: a context read once, and asked as often as one likes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from latentwire.api.spelling import ModelLike, WireLike, as_model, wire
from latentwire.errors import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prompts import Prompt
from latentwire.wires.latent.message import Latents
from latentwire.wires.wire import Message, Wire


@dataclass(frozen=True, eq=False)
class Compressed:
    """A context as it crosses a wire, with the model that can be asked about it.

    Attributes:
        context: the text that was encoded.
        message: what crosses: text, or latents.
        wire: the wire, bound to its reader.
        reader: who answers: the model that was given, with whatever it learned together with the wire.

    Example:
        >>> import latentwire as lw
        >>> lw.compress("embedded:heron", "Ada lives in Rome.", "text")
        Compressed(text, 18 bytes)
    """

    context: str
    message: Message
    wire: Wire
    reader: LM

    @property
    def nbytes(self) -> int:
        """How many bytes cross the wire for this context."""
        return self.message.nbytes()[0]

    @property
    def latents(self) -> int | None:
        """How many latents cross; None for a wire that sends text."""
        return int(self.message.valid.sum()) if isinstance(self.message, Latents) else None

    @torch.no_grad()
    def ask(self, question: str, *, max_new_tokens: int = 32, decoding: Decoding | None = None) -> str:
        """Answer a question without encoding the context again.

        Args:
            question: asked after the context.
            max_new_tokens: how many tokens an answer has at most; it also ends at a line break.
            decoding: how tokens are chosen, in place of greedy decoding up to `max_new_tokens`.

        Returns:
            The answer's text.

        Raises:
            UserError: the prompt is longer than the model's positions.

        Example:
            >>> import latentwire as lw
            >>> memory = lw.compress("embedded:heron", "Ada lives in Rome.", "embedded:heron-4x")
            >>> isinstance(memory.ask("Where does Ada live?"), str)
            True
        """
        how = decoding or Decoding(max_new_tokens=max_new_tokens, stop=("\n",))
        prompt = Prompt(context=self.context, question=question)
        prefix = self.wire.deliver(self.message, [prompt], self.reader)
        return self.reader.generate(self.reader.prefill(prefix), how)[0].text.strip()

    def ask_all(self, questions: Iterable[str], **options: Any) -> list[str]:
        """`ask` each question, in order; `options` are those of `ask`.

        Raises:
            UserError: `questions` is one text, or as `ask`.
        """
        if isinstance(questions, str):
            raise UserError(f"questions: found {questions!r:.40}, expected a list; `ask` takes one question.")
        return [self.ask(question, **options) for question in questions]

    def __repr__(self) -> str:
        latents = "" if self.latents is None else f"{self.latents} latents, "
        return f"Compressed({self.wire.label}, {latents}{self.nbytes} bytes)"


@torch.no_grad()
def compress(model: ModelLike, context: str, over: WireLike) -> Compressed:
    """Send a context over a wire once, so that several questions can be asked about it.

    Args:
        model: who will be asked, loaded or by name.
        context: the text to encode; the questions are not known yet.
        over: a wire or its spelling; `text` keeps the context as it is.

    Returns:
        The message with its reader; `ask` answers questions about it.

    Raises:
        UserError: the wire does not fit the model, or needs the question or other contexts to encode this one.

    Example:
        >>> import latentwire as lw
        >>> memory = lw.compress("embedded:heron", "Ada lives in Rome.", "nth,ratio=2")
        >>> memory.latents < 20
        True
    """
    lm = as_model(model)
    bound = wire(over).bind(lm)
    if bound.question_aware:
        raise UserError(
            f"wire: {bound.label} encodes the question together with the context, expected a wire that reads the "
            "context alone; `evaluate` takes either."
        )
    if getattr(bound, "control", None) == "mean":
        raise UserError(
            f"wire: {bound.label} sends the mean of other contexts, expected a wire that sends this one; "
            "`evaluate` takes either."
        )
    message = bound.send([Prompt(context=context, question="")], lm)
    return Compressed(context, message, bound, bound.reader(lm))

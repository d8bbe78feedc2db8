"""`Wire` and `Message`: how a context is delivered to a reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from latentwire.errors import UserError
from latentwire.kinds import Kind
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.lm.prompt_format import PromptFormat


class Message(ABC):
    """What crosses a wire for B contexts. It depends on no question and on no reader's template.

    Example:
        >>> import latentwire as lw
        >>> lw.compress("embedded:heron", "Ada lives in Rome.", "text").message.nbytes()
        [18]
    """

    @abstractmethod
    def nbytes(self) -> list[int]:
        """Bytes that cross, one number for each context."""


@dataclass(frozen=True)
class Texts(Message):
    """Contexts as text."""

    texts: tuple[str, ...]

    def nbytes(self) -> list[int]:
        return [len(text.encode()) for text in self.texts]


class Wire(Kind, ABC):
    """Turns contexts into a `Message`, and a message with its questions into a `Prefix`.

    A wire never touches attention, caches or losses: it says who sees whom, and `LM` carries it out.

    A new wire is a class with two methods, `encode` and `deliver`. From outside the package it is used by its
    path, `--wire package.module:Class`. In the package it is listed in `KINDS` and held to the contract tests:
    padding, batch size and order change nothing.

    Example:
        >>> import latentwire as lw
        >>> heron = lw.load("embedded:heron")
        >>> wire = lw.wire("nth,ratio=4").bind(heron)
        >>> message = wire.encode(["Ada lives in the old town."])
        >>> prefix = wire.deliver(message, [Prompt(context="", question="Where does Ada live?")], heron)
        >>> len(heron.generate(heron.prefill(prefix), lw.Decoding(max_new_tokens=2)))
        1
    """

    leaks: ClassVar[bool] = False
    """Whether a scored token can see its own label. Such a wire is marked in every table and not trained with."""

    trained: ClassVar[bool] = False
    """Whether it was trained, and so reads contexts in its reader's own prompt format."""

    @property
    def question_aware(self) -> bool:
        """Whether contexts are encoded together with their question. Every table says so."""
        return False

    @property
    def keeps_text(self) -> bool:
        """Whether a reader may see, beside the message, the text that the message was made of.

        A variant then changes the message alone, since changing the context would change both.
        """
        return False

    @property
    def compresses(self) -> bool:
        """Whether the message is latents, so that its cost is measured."""
        return False

    def bind(self, lm: LM) -> Self:
        """This wire, made ready for a reader. Most wires need nothing and return themselves."""
        return self

    def sampled(self, contexts: Sequence[str], akin: Mapping[str, str] | None = None) -> Self:
        """A copy of this (bound) wire calibrated on sample contexts; by default the wire itself.

        Args:
            contexts: the sample, each context of another group.
            akin: maps each context outside the sample to the sampled context of its group.
        """
        return self

    def reader(self, lm: LM) -> LM:
        """The model that reads what this (bound) wire delivers: `lm`, unless it was trained with the wire."""
        return lm

    def trained_format(self, lm: LM) -> PromptFormat | None:
        """The prompt format of `lm` that this wire was trained with; None where that is unknown or none was."""
        return None

    def carried(self, prompts: Sequence[Prompt], lm: LM) -> list[str]:
        """The text of each prompt that is encoded: its context."""
        return [(prompt.sent or prompt).context for prompt in prompts]

    @abstractmethod
    def encode(self, contexts: Sequence[str]) -> Message:
        """The message of B contexts."""

    def send(self, prompts: Sequence[Prompt], lm: LM) -> Message:
        """The message of B prompts; a `question_aware` wire sees the questions."""
        return self.encode(self.carried(prompts, lm))

    @abstractmethod
    def deliver(self, message: Message, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        """The prefix of each prompt. Its context comes from `message`, never from the prompt.

        Only a wire that delivers text beside its message takes that text from the prompt.

        Raises:
            UserError: a prompt is empty.
        """

    @property
    def delivery_changes(self) -> tuple[int, ...]:
        """Decoding steps at which what the wire delivers changes; see `Stepwise`."""
        return ()

    def deliver_again(
        self,
        message: Message,
        rows: Sequence[int],
        prompts: Sequence[Prompt],
        lm: LM,
        step: int,
        written: Sequence[Sequence[int]],
    ) -> Prefix:
        """What the wire delivers at a later decoding step, with what has been written after it.

        Args:
            rows: the rows of the message that the prompts stand for.
            written: token ids of each prompt's answer so far.
        """
        raise NotImplementedError

    def __call__(self, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        """Send and deliver: the prefix of each prompt."""
        return self.deliver(self.send(prompts, lm), prompts, lm)

    @property
    def label(self) -> str:
        """The wire as the command line writes it, without options that have their default values."""
        return self._written({"kind"})

    def _written(self, without: set[str]) -> str:
        options = self.model_dump(exclude_defaults=True, exclude=without)
        texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        return ",".join([self.kind, *(f"{name}={value}" for name, value in texts.items())])

    def refuse_training(self, *, force: bool = False) -> None:
        """Refuse to train over a wire that `leaks`.

        Raises:
            UserError: it leaks, and `force` is false.
        """
        if self.leaks and not force:
            raise UserError(
                f"wire: {self.label} lets every answer token see itself, so training would learn to copy the "
                "label and its loss would mean nothing; expected another wire, or force if that is the point."
            )

"""A wire: how a context is delivered to a reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from latentwire.errors import UserError
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.lm.prompt_format import PromptFormat


class Message(ABC):
    """What crosses a wire for B contexts. It knows no question and no reader's template."""

    @abstractmethod
    def nbytes(self) -> list[int]:
        """Bytes that cross, one number a context."""


@dataclass(frozen=True)
class Texts(Message):
    """Contexts as text."""

    texts: tuple[str, ...]

    def nbytes(self) -> list[int]:
        return [len(text.encode()) for text in self.texts]


class Wire(BaseModel, ABC):
    """Turns contexts into a `Message`, and a message with its questions into a `Prefix`.

    A wire never touches attention, caches or losses: it says who sees whom, `LM` makes it so.

    To add one, write a class with a `kind` and the two methods and add it to `KINDS`. The contract
    tests then run it: off means untouched, indifferent to padding, batch size and order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    leaks: ClassVar[bool] = False
    """Whether a scored token can see its own label. Marked in every table; not trained with."""

    @property
    def question_aware(self) -> bool:
        """Whether contexts are encoded with their question in sight. Said in every table."""
        return False

    @property
    def keeps_text(self) -> bool:
        """Whether a reader may see of its prompt what the message is of, too.

        A variant then changes the message alone, since changing the context would change both.
        """
        return False

    @property
    def compresses(self) -> bool:
        """Whether the message is latents: then what it costs is measured."""
        return False

    def bind(self, lm: LM) -> Self:
        """This wire made ready for a reader; most need nothing."""
        return self

    def sampled(self, contexts: Sequence[str], akin: Mapping[str, str] | None = None) -> Self:
        """This (bound) wire, having met a sample of contexts of different groups; most learn nothing from it.

        akin: for other contexts the one of the sample that is of the same group.
        """
        return self

    def reader(self, lm: LM) -> LM:
        """Who reads what this (bound) wire delivers: the model itself, unless it has learned along with it."""
        return lm

    def trained_format(self, lm: LM) -> PromptFormat | None:
        """The prompt format of `lm` that this wire was trained with; None where that is unknown or none was."""
        return None

    def carried(self, prompts: Sequence[Prompt], lm: LM) -> list[str]:
        """What is encoded of each prompt that `lm` is asked: its context."""
        return [(prompt.sent or prompt).context for prompt in prompts]

    @abstractmethod
    def encode(self, contexts: Sequence[str]) -> Message:
        """What crosses for these contexts."""

    def send(self, prompts: Sequence[Prompt], lm: LM) -> Message:
        """What crosses for these prompts; a `question_aware` wire sees the questions."""
        return self.encode(self.carried(prompts, lm))

    @abstractmethod
    def deliver(self, message: Message, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        """The prefix of each prompt; its context comes from `message`, never from the prompt.

        Only a wire that delivers text beside its message takes that text from the prompt.

        Raises:
            UserError: a prompt is empty.
        """

    def __call__(self, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        return self.deliver(self.send(prompts, lm), prompts, lm)

    @property
    def label(self) -> str:
        """The wire as the command line writes it, options at their defaults left out."""
        return self._written({"kind"})

    def _written(self, without: set[str]) -> str:
        options = self.model_dump(exclude_defaults=True, exclude=without)
        shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        return ",".join([self.kind, *(f"{name}={value}" for name, value in shown.items())])

    def refuse_training(self, *, force: bool = False) -> None:
        """Raise a UserError where what training would learn is to read its own labels."""
        if self.leaks and not force:
            raise UserError(
                f"wire: {self.label} lets every answer token see itself, so training would learn to copy the "
                "label and its loss would mean nothing; expected another wire, or force if that is the point."
            )

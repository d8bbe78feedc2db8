"""What a model is asked: an `Example`, the `Prompt` that a wire sees of it, and the rendered prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

CAUSAL = -1
"""Block id of a token that reads causally."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item of a task.

    It is answered in words (`answers`) or by choosing (`choices`). With both, the choices are in the prompt: each
    in turn ends the context, and the first answer is scored after it (Winogrande).

    Attributes:
        id: stays the same for ever.
        group: names what examples share (a passage, an article); statistics resample groups.
        context, question: the texts. Either may be empty.
        answers: any of them is right; the first is trained on.
        choices: the options, of which `gold` is the index of the right one.
        candidates: values of the relation that is asked for, in the order in which the context states them, so
            that a reader who ignores whom the question is about can be scored; empty where that is unknown.

    Example:
        >>> import latentwire as lw
        >>> fact = lw.Example(id="1", group="1", context="Ada is in Rome.", question="Where?", answers=("Rome",))
        >>> fact.answers
        ('Rome',)
    """

    id: str
    group: str
    context: str
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    gold: int = -1
    candidates: tuple[str, ...] = ()

    def requests(self) -> tuple[Example, ...]:
        """The examples to ask, one per prompt: this one, or one per choice where the choices are in the prompt."""
        if not (self.choices and self.answers):
            return (self,)
        scored = replace(self, choices=self.answers[:1], answers=(), gold=0)
        return tuple(replace(scored, context=self.context + choice) for choice in self.choices)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a reader is asked, without the answer.

    Attributes:
        unstable: how many tokens at the prompt's end change once an answer follows; they never join a
            bidirectional block.
        tokens: the prompt's length as plain text.
        sent: the prompt whose message a wire delivers instead of this one's, for controls. The text beside the
            message stays this one's.
    """

    context: str
    question: str
    unstable: int = 0
    tokens: int = 0
    sent: Prompt | None = None


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as tokens.

    Attributes:
        ids: token ids.
        segments: per token, 0 for the context and everything before it, 1 for the question.
        anchor: how many tokens at the end are the anchor.
    """

    ids: list[int]
    segments: list[int]
    anchor: int

    def blocks(self, mask: Literal["causal", "prefix", "segments"], unstable: int, outside: int) -> list[int]:
        """Block ids under a mask; the last `max(unstable, outside)` tokens stay causal."""
        count = len(self.ids) - max(unstable, outside)
        if mask == "causal":
            return [CAUSAL] * len(self.ids)
        inside = [0] * count if mask == "prefix" else self.segments[:count]
        return inside + [CAUSAL] * (len(self.ids) - count)

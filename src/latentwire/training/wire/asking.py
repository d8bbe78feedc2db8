"""A reader's tokens of contexts, questions and answers, many contexts at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.model import LM
from latentwire.lm.prompt_format import PLACE
from latentwire.lm.prompts import Example
from latentwire.lm.segments import splits_at_blanks
from latentwire.tasks.data_files import digest
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.reader_text import asking

WHOLE = 16
"""Contexts of a batch after which answers are tokenized with all of the context."""
END = 64
"""Characters at the end of the other contexts."""

Pair = tuple[list[int], list[int]]
"""Token ids of what follows a context, and of the answer with its end token."""


@dataclass(frozen=True)
class Asked:
    """One context with its questions, as a reader's tokens.

    Attributes:
        text: the context and what stands before it; what latents are made of.
        pairs: its questions with their answers, as they follow the text.
        after_latents: what follows latents instead of the questions, where that is something else.
    """

    text: list[int]
    pairs: list[Pair]
    after_latents: list[list[int]] | None = None


@dataclass(frozen=True)
class Asking(Tokenizing):
    """Turns examples into a reader's tokens.

    Attributes:
        wire: the wire that is trained; it says what is encoded and what the reader sees beside the latents.
    """

    wire: LatentConfig = field(default_factory=LatentConfig)

    @classmethod
    def of(cls, lm: LM, wire: LatentConfig | None = None) -> Asking:
        """Of a loaded model."""
        return cls(lm.tokenizer, lm.format, lm.name, lm.eos_ids, wire or LatentConfig())

    @property
    def identity(self) -> str:
        """A digest that differs from that of every `Asking` that gives other tokens for the same examples."""
        special = json.dumps(self.tokenizer.special_tokens_map, default=str)
        tokenizer = _tokenizer_digest(self.tokenizer, len(self.tokenizer), special)
        template = getattr(self.tokenizer, "chat_template", None)
        format_ = self.format.model_dump()
        known = [self.name, format_, template, special, sorted(self.eos_ids), self.wire.carry, self.wire.shown]
        return digest(json.dumps([tokenizer, *known]))

    def contexts(self, groups: Sequence[Sequence[Example]]) -> list[Asked]:
        """The tokens of contexts, each given by the examples that share it; the tokenizer is called few times.

        Of a whole prompt there is one example a context. There, and where text stands beside latents, text and
        question are the prompt's own tokens.

        Raises:
            UserError: as `asking` and `answers`, or nothing follows latents that an answer could be learned from.
        """
        prompts = [(example.context, example.question) for examples in groups for example in examples]
        texts, after = asking(self.wire, prompts, self)
        if not all(after):
            first = [example for examples in groups for example in examples][after.index([])]
            raise UserError(
                f"data: found nothing after the latents of {first.id}, whose task words prompts as context "
                "alone, expected a question, or layout: text, where the prompt's last token stands there."
            )
        answers = self.answers(groups)
        starts = [0]
        for examples in groups:
            starts.append(starts[-1] + len(examples))
        spans = [slice(start, end) for start, end in pairwise(starts)]
        if self.wire.carry == "prompt":
            return [
                Asked(text, [(rest, answer) for answer in answers[span]], after[span])
                for span in spans
                for text, rest in [self.format.split(*prompts[span.start], self, whole=True)]
            ]
        if texts is not None:
            return [_beside(texts[span], after[span], answers[span]) for span in spans]
        before = self.format.before_all([examples[0].context for examples in groups], self)
        return [
            Asked(text, list(zip(after[span], answers[span], strict=True)))
            for text, span in zip(before, spans, strict=True)
        ]

    def continuations(self, examples: Sequence[Example]) -> list[Asked]:
        """The tokens of contexts that the answer continues: its first token is asked, the others are learned."""
        texts = [f" {example.answers[0]}" for example in examples]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        before = self.format.before_all([example.context for example in examples], self)
        return [Asked(text, [(list(ids[:1]), list(ids[1:]))]) for text, ids in zip(before, rows, strict=True)]

    def answers(self, groups: Sequence[Sequence[Example]]) -> list[list[int]]:
        """The answers of all examples in order, as the tokens that an evaluation scores, and their end.

        Raises:
            UserError: a context changes the tokens of its first answer; all are taken without the context, which
                costs a small part of reading it again for each.
        """
        examples_ = [example for examples in groups for example in examples]
        different = list(dict.fromkeys(example.answers[0] for example in examples_))
        rows = self.format.answers_apart(different, self)
        checked = self._in_context([examples[0] for examples in groups], apart=rows is not None)
        if rows is None and self.format.template != "raw" and self.format.anchor:
            # The same words end every prompt: one short prompt stands for all, and equal answers are equal tokens.
            short = Example(id="", group="", context="", question=PLACE)
            rows = self._answers([replace(short, answers=(text,)) for text in different])
        if rows is None:
            # Without a question the context is the whole prompt.
            alone = self._answers([replace(each, context="") if each.question else each for each in examples_])
        else:
            known = dict(zip(different, rows, strict=True))
            alone = [known[example.answers[0]] for example in examples_]
        in_context = self._answers(checked)
        at = 0
        for examples, answer in zip(groups, in_context, strict=False):  # of some contexts only
            if answer != alone[at]:
                raise UserError(
                    f"data: the tokenizer of {self.name} cuts the answer to {examples[0].id} in another way after "
                    "its context than without it, expected the same tokens."
                )
            at += len(examples)
        end = self.format.answer_end(self)
        return [[*answer, *end] for answer in alone]

    def _in_context(self, examples: Sequence[Example], *, apart: bool) -> list[Example]:
        """Examples that show whether a context changes an answer's tokens, of the first groups or of all.

        Where the tokenizer cuts texts into words first, the end of a context stands for all of it, but for a few.

        Args:
            apart: a special token stands before every answer, so that a few examples are enough.
        """
        if apart:
            return list(examples[:WHOLE])
        if self.format.template == "raw" or not splits_at_blanks(self.tokenizer):
            return list(examples)
        some = list(examples[:WHOLE])
        return some + [replace(each, context=each.context[-END:].lstrip()) for each in examples[WHOLE:]]

    def _answers(self, examples: Sequence[Example]) -> list[list[int]]:
        encoded = self.format.encode_all([replace(each, choices=()) for each in examples], self)
        return [answers[0] for _, answers in encoded]


@lru_cache(maxsize=8)
def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase, size: int, special: str) -> str:
    """Of all that a tokenizer does; size and special tokens tell it from what it was before it was changed."""
    return digest(tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer))


def _beside(texts: list[list[int]], after: list[list[int]], answers: list[list[int]]) -> Asked:
    """One context's tokens where the text stands beside the latents."""
    # What runs across the boundary may do so for some questions only.
    shared = min(map(len, texts))
    asked = [[*text[shared:], *ids] for text, ids in zip(texts, after, strict=True)]
    return Asked(texts[0][:shared], list(zip(asked, answers, strict=True)))

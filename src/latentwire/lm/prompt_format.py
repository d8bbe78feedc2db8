"""Turns examples into tokens; the only place that does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from latentwire.errors import UserError
from latentwire.lm import chat_template
from latentwire.lm.prompts import Example, Prompt, RenderedPrompt
from latentwire.lm.reader import Tokenizes
from latentwire.lm.segments import cut_apart, token_ids

PLACE = "Context."
"""Stands in for a context, to find the text around it."""


class PromptFormat(BaseModel):
    """How a reader's prompts are worded. Saved in every checkpoint; training and evaluation share it.

    Attributes:
        template: `question` writes context, `Question: ...` and the anchor on lines of their own; `raw` writes
            context and question as they are and no anchor (for prompts that a benchmark words itself); `chat`
            puts context and question into a user turn of the tokenizer's chat template.
        delimiter: what stands between prompt and answer where a benchmark words its prompts; elsewhere a space
            follows the anchor.
        anchor: the text that the answer follows; in a chat it begins the model's turn.
        anchor_block: whether the anchor belongs to a bidirectional block.
        instruction: a line between context and question that says how to answer.
        system: the text of a chat's system turn; None leaves that turn to the template.
        thinking: whether a chat lets the model think first, where its template has a switch for it.
        verbatim: whether a chat's user turn is a benchmark's prompt word for word; then there is no anchor.

    Example:
        >>> form = PromptFormat(template="chat", instruction="Answer with a few words copied from the passage.")
        >>> form.template
        'chat'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Literal["question", "raw", "chat"] = "question"
    delimiter: str = ""
    anchor: str = "Answer:"
    anchor_block: Literal["inside", "causal"] = "inside"
    instruction: str = ""
    system: str | None = None
    thinking: bool = False
    verbatim: bool = False

    @model_validator(mode="after")
    def _fields_belong_to_the_template(self) -> PromptFormat:
        chat_only = {"system": self.system is not None, "thinking": self.thinking, "verbatim": self.verbatim}
        for name in [name for name, given in chat_only.items() if given and self.template != "chat"]:
            raise ValueError(f"{name}: found it beside template {self.template}, expected template chat")
        if self.template == "raw" and self.instruction:
            raise ValueError("instruction: found one beside template raw, which writes prompts as they are")
        return self

    def around(self, words: PromptFormat) -> PromptFormat:
        """The format for a benchmark that words its own prompts: as it words them, in a chat where this is one."""
        if self.template != "chat":
            return words
        return self.model_copy(update={"verbatim": True, "anchor": ""})

    def encode(self, example: Example, lm: Tokenizes) -> tuple[Prompt, tuple[list[int], ...]]:
        """The prompt, and the answer's token ids: one list per choice, or one for the first answer.

        Prompt and answer are tokenized together and split after as many tokens as the prompt alone has, as lm-eval
        splits a pair. Spaces at the prompt's end belong to the answer (under `raw` line breaks too, as there).

        Raises:
            UserError: an answer adds no token to the prompt.
            ValueError: the example has a prompt for each choice; encode its `requests()`.
        """
        return self.encode_all([example], lm)[0]

    def encode_all(self, examples: Sequence[Example], lm: Tokenizes) -> list[tuple[Prompt, tuple[list[int], ...]]]:
        """`encode` for many examples in one call of the tokenizer."""
        joint = self.joint(lm)
        texts = [self._with_answers(example, joint, lm) for example in examples]
        different = list(dict.fromkeys(text for of_example in texts for text in of_example))
        ids = dict(zip(different, self._all_ids(different, lm), strict=True))
        return [
            _prompt_and_answers(example, *(ids[text] for text in of_example))
            for example, of_example in zip(examples, texts, strict=True)
        ]

    def _with_answers(self, example: Example, joint: str, lm: Tokenizes) -> list[str]:
        """The prompt's text alone, and followed by each answer."""
        if example.choices and example.answers:
            raise ValueError(f"{example.id} has a prompt for each choice, expected one of its requests()")
        text = self.render(example.context, example.question, lm)[0]
        return [self._kept(text), *(text + joint + answer for answer in example.choices or example.answers[:1])]

    def joint(self, lm: Tokenizes) -> str:
        """What stands between a prompt's text and its answer."""
        if self.template == "raw":
            return self.delimiter
        if self.template == "chat" and not self.anchor:
            return chat_template.around_answer(lm, thinking=self.thinking)[0]
        return " "

    def answers_apart(self, answers: Sequence[str], lm: Tokenizes) -> list[list[int]] | None:
        """The tokens of answers in any prompt, where a chat's special token stands before them.

        Returns:
            None where an answer's tokens may depend on the prompt.

        Raises:
            UserError: an answer adds no token to a prompt.
        """
        if self.template != "chat":
            return None
        text = self.render("", PLACE, lm)[0]
        before = text[text.rindex(PLACE) + len(PLACE) :]
        if not cut_apart(before, lm.tokenizer):
            return None
        texts = [self._kept(before), *(before + self.joint(lm) + answer for answer in answers)]
        alone, *wholes = token_ids(texts, lm.tokenizer, special=False)
        for answer, whole in zip(answers, wholes, strict=True):
            if len(whole) <= len(alone):
                raise UserError(f"data: the answer {answer!r} adds no token to its prompt.")
        return [whole[len(alone) :] for whole in wholes]

    def whole(self, context: str, question: str, answer: str, lm: Tokenizes) -> list[int]:
        """Tokens of a prompt followed by an answer, tokenized as one text."""
        return self._ids(self.render(context, question, lm)[0] + self.joint(lm) + answer, lm)

    def tokens(self, context: str, question: str, lm: Tokenizes) -> RenderedPrompt:
        """Tokens of a prompt; the context may be empty.

        An empty raw prompt becomes the token that begins a text (BOS, or EOS if there is none), as in lm-eval.

        Raises:
            UserError: the prompt has no token at all.
        """
        return self.tokens_all([(context, question)], lm)[0]

    def tokens_all(self, asked: Sequence[tuple[str, str]], lm: Tokenizes) -> list[RenderedPrompt]:
        """`tokens` of many contexts and questions in one call of the tokenizer."""
        anchored = self.template != "raw" and self.anchor != ""
        # What is read, the part of it that no question shapes, and what stands before the anchor.
        texts: list[tuple[str, str, str]] = []
        beginning: list[list[int]] = []
        for context, question in asked:
            text, boundary = self.render(context, question, lm)
            bare = text[: len(text) - len(self.anchor)].rstrip(" ") if anchored else ""
            texts.append((self._kept(text), text[:boundary] if context else "", bare))
            beginning.append([] if text else _beginning(lm))
        different = list(dict.fromkeys(text for whole, *parts in texts for text in (whole, *filter(None, parts))))
        known = dict(zip(different, self._all_ids(different, lm), strict=True))
        prompts = []
        for (text, before, bare), otherwise in zip(texts, beginning, strict=True):
            ids = known[text] or otherwise
            if not ids:
                raise UserError("prompt: found no token, expected a context or a question.")
            shared = _common(ids, known[before]) if before else 0
            prompts.append(
                RenderedPrompt(
                    ids=ids,
                    segments=[0] * shared + [1] * (len(ids) - shared),
                    anchor=len(ids) - (_common(ids, known[bare]) if bare else 0) if anchored else 0,
                )
            )
        return prompts

    def before(self, context: str, lm: Tokenizes) -> list[int]:
        """Tokens of a context and everything before it (BOS, a chat's header): the part that questions share."""
        return self.before_all([context], lm)[0]

    def before_all(self, contexts: Sequence[str], lm: Tokenizes) -> list[list[int]]:
        """`before` for many contexts in one call of the tokenizer."""
        rendered = [self.render(context or PLACE, "?", lm) for context in contexts]
        ends = [
            boundary if context else text.index(PLACE)
            for context, (text, boundary) in zip(contexts, rendered, strict=True)
        ]
        return self._all_ids([text[:end] for (text, _), end in zip(rendered, ends, strict=True)], lm)

    def spans(self, context: str, lm: Tokenizes) -> tuple[list[int], list[tuple[int, int]]]:
        """`before`, with the characters of the context at which each token begins and ends.

        Tokens before the context have negative places; a token without text has an empty span.

        Raises:
            UserError: the tokenizer gives no character spans.
        """
        if not lm.tokenizer.is_fast:
            raise UserError(f"tokenizer: that of {lm.name} gives no character spans, expected a fast one.")
        text, boundary = self.render(context or PLACE, "?", lm)
        start = text.index(context or PLACE)
        text = text[: boundary if context else start]
        encoding = lm.tokenizer(text, add_special_tokens=self.template != "chat", return_offsets_mapping=True)
        ids, offsets = _unended(encoding["input_ids"], text, lm), encoding["offset_mapping"]
        spans = [(int(first) - start, int(end) - start) for first, end in offsets[: len(ids)]]
        if self.template == "chat":
            ids, moved = chat_template.with_one_bos(ids, lm, chat_template.begins_with_bos(lm))
            spans = [(-start, -start)] * moved + spans[max(-moved, 0) :]
        return ids, spans

    def after(self, question: str, lm: Tokenizes) -> list[int]:
        """Tokens of everything after a context: the instruction, the question and the anchor.

        They are tokenized alone, since a context may not be delivered as text.
        """
        return self.after_all([question], lm)[0]

    def after_all(self, questions: Sequence[str], lm: Tokenizes) -> list[list[int]]:
        """`after` for many questions in one call of the tokenizer."""
        frame = None
        if self.template == "chat" and not self.verbatim:
            frame = chat_template.frame(lm, system=self.system, thinking=self.thinking)

        def after(question: str) -> str:
            asked = self.body("", question)
            if frame is not None and chat_template.is_plain(asked):
                return self._kept(asked + frame[1] + self.anchor)
            text, boundary = self.render(PLACE, question, lm)
            return self._kept(text)[boundary:]

        texts, instructed = [after(question) for question in questions], self.body("", "")
        return token_ids(texts, lm.tokenizer, special=False, shared=instructed)

    def split(
        self, context: str, question: str, lm: Tokenizes, *, whole: bool = False
    ) -> tuple[list[int], list[int]]:
        """A prompt's `tokens` in two parts: up to the end of the context, and the rest.

        A token across the boundary belongs to the rest, which is never empty.

        Args:
            whole: the question belongs to the first part too, which leaves the anchor to the second.

        Raises:
            UserError: the prompt has no token at all.
        """
        ids = self.tokens(context, question, lm).ids
        text, boundary = self.render(context, question, lm)
        if whole:
            said = self.body(context, question).strip()
            boundary = text.find(said) + len(said)
        at = min(_common(ids, self._ids(text[:boundary], lm)), len(ids) - 1)
        return ids[:at], ids[at:]

    def ending(self, lm: Tokenizes) -> list[int]:
        """Tokens of everything after a question: the anchor with the text before it, also where `raw` writes none.

        Raises:
            UserError: there is no anchor.
        """
        if self.template == "raw":
            text = f"\n{self.anchor}" if self.anchor else ""
        else:
            whole = self.render("", PLACE, lm)[0]
            text = whole[whole.index(PLACE) + len(PLACE) :]
        ids = list(lm.tokenizer(text.rstrip(" "), add_special_tokens=False)["input_ids"])
        if not ids:
            raise UserError("format: found no anchor, expected one for a prompt that has nothing else.")
        return ids

    def outside(self, tokens: RenderedPrompt) -> int:
        """How many tokens at the end stay outside a bidirectional block."""
        return tokens.anchor if self.anchor_block == "causal" else 0

    def render(self, context: str, question: str, lm: Tokenizes) -> tuple[str, int]:
        """The prompt's text, and the index of the character after its context.

        Raises:
            UserError: a chat template is asked for and the tokenizer has none, or it rewrites what it is given.
        """
        text = self.body(context, question)
        after = len(question) if self.verbatim else len(self.body("", question))
        boundary = len(text) - after
        if self.template == "raw":
            return text, boundary
        if self.template == "question":
            return f"{text}\n{self.anchor}", boundary
        chat = chat_template.user_turn(text, lm, system=self.system, thinking=self.thinking)
        # Many templates strip what a user says. The last match: a system text may hold the same words.
        said, indent = text.strip(), len(text) - len(text.lstrip())
        start = chat.rfind(said)
        if start < 0:
            raise UserError(
                f"prompts: found template chat for {lm.name}, whose chat template changes the words of a prompt; "
                "expected a template that keeps them, or template question."
            )
        return f"{chat}{self.anchor}", start + min(max(boundary - indent, 0), len(said))

    def body(self, context: str, question: str) -> str:
        """Context, instruction and question as they are worded, without the anchor and the chat's turns."""
        if self.template == "raw":
            return context + question
        if self.verbatim:
            return f"{self.instruction}\n{context}{question}" if self.instruction else context + question
        worded = f"Question: {question}" if self.template == "question" else question
        asked = f"{self.instruction}\n{worded}" if self.instruction else worded
        return f"{context}\n{asked}" if context else asked

    def conversation(self, turns: Sequence[tuple[str, str]], lm: Tokenizes, *, answering: bool) -> list[int]:
        """Tokens of (role, text) turns; with `answering` up to where the model's next turn begins.

        Without a chat template, turns are lines of `Role: text`.
        """
        if chat_template.template_of(lm):
            if self.system is not None and turns[0][0] != "system":
                turns = [("system", self.system), *turns]
            text = chat_template.render(turns, lm, thinking=self.thinking, answering=answering)
            ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
            return chat_template.with_one_bos(ids, lm, chat_template.begins_with_bos(lm))[0]
        ids = []
        for role, text in turns:
            # Piece by piece, so that earlier tokens never depend on later text.
            ids += self._piece(f"{role.capitalize()}:", lm, first=not ids) + self._piece(f" {text}\n", lm)
            ids += sorted(lm.eos_ids)[:1] if role == "assistant" else []
        return ids + (self._piece("Assistant:", lm, first=not ids) if answering else [])

    def _piece(self, text: str, lm: Tokenizes, *, first: bool = False) -> list[int]:
        return self._ids(text, lm) if first else list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _kept(self, text: str) -> str:
        """The prompt without trailing spaces, which belong to the answer."""
        return text.rstrip() if self.template == "raw" else text.rstrip(" ")

    def _ids(self, text: str, lm: Tokenizes) -> list[int]:
        return self._all_ids([text], lm)[0]

    def _all_ids(self, texts: Sequence[str], lm: Tokenizes) -> list[list[int]]:
        chat = self.template == "chat"  # whose template writes its own special tokens
        called = token_ids(texts, lm.tokenizer, special=not chat)
        rows = [_unended(ids, text, lm) for ids, text in zip(called, texts, strict=True)]
        begins = chat and chat_template.begins_with_bos(lm)
        return [chat_template.with_one_bos(ids, lm, begins)[0] for ids in rows] if chat else rows

    def end_ids(self, lm: Tokenizes) -> frozenset[int]:
        """Tokens that end an answer besides those that end a text: the end of a chat's turn."""
        return chat_template.end_of_turn(lm) if self.template == "chat" else frozenset()

    def answer_end(self, lm: Tokenizes) -> list[int]:
        """The token that a model learns to end an answer with, as a list; empty for a model without one."""
        return sorted(self.end_ids(lm) or lm.eos_ids)[:1]


def _prompt_and_answers(
    example: Example, alone: list[int], *wholes: list[int]
) -> tuple[Prompt, tuple[list[int], ...]]:
    """From the tokens of a prompt alone, and followed by each answer."""
    shared = len(alone)
    given = example.choices or example.answers[:1]
    for answer, whole in zip(given, wholes, strict=True):
        if len(whole) <= len(alone):
            raise UserError(f"{example.id}: the answer {answer!r} adds no token to its prompt.")
        # A generated answer is not known yet: only scored choices shape the prompt's block.
        if example.choices:
            shared = min(shared, _common(alone, whole))
    prompt = Prompt(
        context=example.context,
        question=example.question,
        unstable=len(alone) - shared,
        tokens=len(alone),
    )
    return prompt, tuple(whole[len(alone) :] for whole in wholes)


def _unended(ids: list[int], text: str, lm: Tokenizes) -> list[int]:
    """Without the end-of-sequence token that some tokenizers append to every text."""
    while len(ids) > 1 and ids[-1] in lm.eos_ids and not text.endswith(str(lm.tokenizer.decode(ids[-1:]))):
        ids = ids[:-1]
    return ids


def _beginning(lm: Tokenizes) -> list[int]:
    """The token that begins a text, as a list; empty if the tokenizer has none."""
    known = (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id)
    return [int(token) for token in known if token is not None][:1]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))

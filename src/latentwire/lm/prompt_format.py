"""The one place that turns an example into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from latentwire.errors import UserError
from latentwire.lm.prompts import Example, Prompt, Tokens
from latentwire.lm.reader import Tokenizes

PLACE = "Context."
"""Stands where a context would, to find out what stands around it."""


class PromptFormat(BaseModel):
    """How a reader's prompts look. Saved in every checkpoint, the same in training and evaluation.

    template: `question` writes context, `Question: ...` and the anchor on lines of their own; `raw`
        writes context and question as they are and no anchor (for prompts that a benchmark words
        itself); `chat` puts context and question into a user turn of the tokenizer's chat template.
    delimiter: what stands between prompt and answer under `raw`; the other templates have a space there.
    anchor: what the answer follows. anchor_block: whether the anchor belongs to a bidirectional block.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Literal["question", "raw", "chat"] = "question"
    delimiter: str = ""
    anchor: str = "Answer:"
    anchor_block: Literal["inside", "causal"] = "inside"

    def encode(self, example: Example, lm: Tokenizes) -> tuple[Prompt, tuple[list[int], ...]]:
        """The prompt, and the answer's token ids: one list a choice, or one for the first answer.

        Prompt and answer are tokenized together and split behind as many tokens as the prompt alone
        has, as lm-eval splits a pair; blanks at the prompt's end belong to the answer (under `raw` line
        breaks too, as there).

        Raises:
            UserError: an answer adds no token to the prompt.
            ValueError: the example has a prompt for each choice; encode its `requests()`.
        """
        return self.encode_all([example], lm)[0]

    def encode_all(self, examples: Sequence[Example], lm: Tokenizes) -> list[tuple[Prompt, tuple[list[int], ...]]]:
        """`encode` of each, faster: the tokenizer is called once."""
        texts = [self._with_answers(example, lm) for example in examples]
        ids = iter(self._all_ids([text for each in texts for text in each], lm))
        return [
            _prompt_and_answers(example, *(next(ids) for _ in each))
            for example, each in zip(examples, texts, strict=True)
        ]

    def _with_answers(self, example: Example, lm: Tokenizes) -> list[str]:
        """The prompt's text alone, and with each answer behind it."""
        if example.choices and example.answers:
            raise ValueError(f"{example.id} has a prompt for each choice, expected one of its requests()")
        text = self.render(example.context, example.question, lm)[0]
        return [self._kept(text), *(self._answered(text, each) for each in example.choices or example.answers[:1])]

    def _answered(self, text: str, answer: str) -> str:
        return f"{text}{self.delimiter}{answer}" if self.template == "raw" else f"{text} {answer}"

    def whole(self, context: str, question: str, answer: str, lm: Tokenizes) -> list[int]:
        """Tokens of a prompt with an answer behind it, tokenized as one text."""
        return self._ids(self._answered(self.render(context, question, lm)[0], answer), lm)

    def tokens(self, context: str, question: str, lm: Tokenizes) -> Tokens:
        """Tokens of a prompt; the context may be empty.

        Where a raw prompt is empty altogether, it is the token that begins a text (BOS, or EOS for want of
        it), as in lm-eval: what follows is scored by itself.

        Raises:
            UserError: the prompt has no token at all.
        """
        text, boundary = self.render(context, question, lm)
        ids = self._ids(self._kept(text), lm) or ([] if text else _beginning(lm))
        if not ids:
            raise UserError("prompt: found no token, expected a context or a question.")
        before = _common(ids, self._ids(text[:boundary], lm)) if context else 0
        anchored = self.template != "raw" and self.anchor != ""
        bare = text[: len(text) - len(self.anchor)].rstrip(" ")
        return Tokens(
            ids=ids,
            segments=[0] * before + [1] * (len(ids) - before),
            anchor=len(ids) - _common(ids, self._ids(bare, lm)) if anchored else 0,
        )

    def before(self, context: str, lm: Tokenizes) -> list[int]:
        """Tokens of a context and of what stands before it (BOS, a chat's header): what any question follows."""
        text, boundary = self.render(context or PLACE, "?", lm)
        return self._ids(text[: boundary if context else text.index(PLACE)], lm)

    def spans(self, context: str, lm: Tokenizes) -> tuple[list[int], list[tuple[int, int]]]:
        """`before`, and where in the context each token begins and ends, in characters.

        What stands before the context has negative places; a token that is no text has an empty span.

        Raises:
            UserError: the tokenizer cannot say where its tokens stand.
        """
        if not lm.tokenizer.is_fast:
            raise UserError(f"tokenizer: that of {lm.name} gives no character spans, expected a fast one.")
        text, boundary = self.render(context or PLACE, "?", lm)
        start = text.index(context or PLACE)
        text = text[: boundary if context else start]
        found = lm.tokenizer(text, add_special_tokens=self.template != "chat", return_offsets_mapping=True)
        ids = _unended(found["input_ids"], text, lm)
        spans = [(int(a) - start, int(b) - start) for a, b in found["offset_mapping"][: len(ids)]]
        return ids, spans

    def behind(self, question: str, lm: Tokenizes) -> list[int]:
        """Tokens of what stands behind a context: the question with its words and the anchor.

        They are tokenized alone, since what stands before them may be no text.
        """
        return self.behind_all([question], lm)[0]

    def behind_all(self, questions: Sequence[str], lm: Tokenizes) -> list[list[int]]:
        """`behind` of each, faster: the tokenizer is called once."""
        rendered = [self.render(PLACE, question, lm) for question in questions]
        return _token_ids([self._kept(text)[boundary:] for text, boundary in rendered], lm, special=False)

    def split(
        self, context: str, question: str, lm: Tokenizes, *, whole: bool = False
    ) -> tuple[list[int], list[int]]:
        """A prompt's `tokens` in two: the context with what stands before it, and what stands behind.

        A token that runs across the boundary stands behind it, and at least one does.

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
        """Tokens of what stands behind a question: the anchor with what leads to it, also where `raw` writes none.

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
            raise UserError("format: found no anchor, expected one for a prompt that is nothing else.")
        return ids

    def outside(self, tokens: Tokens) -> int:
        """How many tokens at the end stay out of a bidirectional block."""
        return tokens.anchor if self.anchor_block == "causal" else 0

    def render(self, context: str, question: str, lm: Tokenizes) -> tuple[str, int]:
        """The prompt's text, and where in it the context ends.

        Raises:
            UserError: a chat template is asked for and the tokenizer has none, or it rewrites what it is given.
        """
        text = self.body(context, question)
        boundary = len(text) - len(self.body("", question))
        if self.template == "raw":
            return text, boundary
        if self.template == "question":
            return f"{text}\n{self.anchor}", boundary
        if not getattr(lm.tokenizer, "chat_template", None):
            raise UserError(f"format: found chat, but the tokenizer of {lm.name} has no chat template.")
        turns = [{"role": "user", "content": text}]
        chat = str(lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        # Many templates strip what a user says.
        said, indent = text.strip(), len(text) - len(text.lstrip())
        start = chat.find(said)
        if start < 0:
            raise UserError(f"format: the chat template of {lm.name} does not hold the prompt word for word.")
        return f"{chat}{self.anchor}", start + min(max(boundary - indent, 0), len(said))

    def body(self, context: str, question: str) -> str:
        """Context and question as they are worded, without the anchor and the chat's turns."""
        if self.template == "raw":
            return context + question
        worded = f"Question: {question}" if self.template == "question" else question
        return f"{context}\n{worded}" if context else worded

    def conversation(self, turns: Sequence[tuple[str, str]], lm: Tokenizes, *, answering: bool) -> list[int]:
        """Tokens of (role, text) turns; with `answering` up to where the model's next turn begins.

        Without a chat template, turns are lines of `Role: text`.
        """
        if getattr(lm.tokenizer, "chat_template", None):
            messages = [{"role": role, "content": text} for role, text in turns]
            text = str(lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering))
            return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids: list[int] = []
        for role, text in turns:
            # Piece by piece, so that what stands before never depends on what follows.
            ids += self._piece(f"{role.capitalize()}:", lm, first=not ids) + self._piece(f" {text}\n", lm)
            ids += sorted(lm.eos_ids)[:1] if role == "assistant" else []
        return ids + (self._piece("Assistant:", lm, first=not ids) if answering else [])

    def _piece(self, text: str, lm: Tokenizes, *, first: bool = False) -> list[int]:
        return self._ids(text, lm) if first else list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _kept(self, text: str) -> str:
        """The prompt without the blanks that belong to the answer."""
        return text.rstrip() if self.template == "raw" else text.rstrip(" ")

    def _ids(self, text: str, lm: Tokenizes) -> list[int]:
        return self._all_ids([text], lm)[0]

    def _all_ids(self, texts: Sequence[str], lm: Tokenizes) -> list[list[int]]:
        # A chat template writes its own special tokens.
        called = _token_ids(texts, lm, special=self.template != "chat")
        return [_unended(ids, text, lm) for ids, text in zip(called, texts, strict=True)]


def _token_ids(texts: Sequence[str], lm: Tokenizes, *, special: bool) -> list[list[int]]:
    return list(lm.tokenizer(list(texts), add_special_tokens=special)["input_ids"]) if texts else []


def _prompt_and_answers(
    example: Example, alone: list[int], *wholes: list[int]
) -> tuple[Prompt, tuple[list[int], ...]]:
    """From the tokens of a prompt, and of it with each answer behind it."""
    shared = len(alone)
    given = example.choices or example.answers[:1]
    for answer, whole in zip(given, wholes, strict=True):
        if len(whole) <= len(alone):
            raise UserError(f"{example.id}: the answer {answer!r} adds no token to its prompt.")
        # What is generated cannot know what it will be: only scored choices shape the prompt's block.
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
    """Without the end-of-sequence token that some tokenizers append to a text; nothing could follow it."""
    while len(ids) > 1 and ids[-1] in lm.eos_ids and not text.endswith(str(lm.tokenizer.decode(ids[-1:]))):
        ids = ids[:-1]
    return ids


def _beginning(lm: Tokenizes) -> list[int]:
    """The token that begins a text, as a list; empty for a tokenizer without one."""
    known = (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id)
    return [int(token) for token in known if token is not None][:1]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))

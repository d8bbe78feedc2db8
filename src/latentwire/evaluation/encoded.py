"""Examples tokenized for a reader, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example, Prompt
from latentwire.tasks.base import Split, Task


@dataclass(frozen=True)
class EncodedExample:
    """An example tokenized for a reader.

    Attributes:
        example: as the arm asks it.
        prompts: one for all answers, or one for each.
        answers: token ids of each answer.
        original: the example before the arm's variant changed it; None where none did.
    """

    example: Example
    prompts: tuple[Prompt, ...]
    answers: tuple[list[int], ...]
    original: Example | None = None

    @property
    def prompt(self) -> Prompt:
        """The longest of the prompts."""
        return max(self.prompts, key=lambda prompt: prompt.tokens)

    def rows(self) -> list[tuple[Prompt, tuple[list[int], ...]]]:
        """The prompts, each with the answers that are scored after it."""
        if len(self.prompts) == 1:
            return [(self.prompt, self.answers)]
        return [(prompt, (answer,)) for prompt, answer in zip(self.prompts, self.answers, strict=True)]


def prepare(lm: LM, task: Task, split: Split, limit: int | None) -> list[EncodedExample]:
    """The task's examples, tokenized for a reader.

    Args:
        lm: the reader.
        task: what is asked.
        split: which examples.
        limit: the first N of them; None takes all.

    Example:
        >>> prepare(LM.load("embedded:heron"), resolve(["one_hop"], None)[0], "test", 2)[0].prompt.tokens

    Raises:
        UserError: there are none.
    """
    examples = task.examples(split, limit)
    if not examples:
        raise UserError(f"task: {task.name} has no examples in its {split} split.")
    return encode_all(examples, reader_of(lm, task))


def encode_all(
    examples: Sequence[Example], reader: LM, sent: Sequence[Prompt | None] | None = None
) -> list[EncodedExample]:
    """Examples, tokenized for a reader: one call of the tokenizer for many texts costs a fraction of many calls.

    Args:
        examples: what is asked.
        reader: whose prompt format and tokenizer are used.
        sent: for each example the prompt whose message is delivered in place of its own; None for its own.
    """
    requests = [example.requests() for example in examples]
    encoded = iter(reader.format.encode_all([request for asked in requests for request in asked], reader))
    return [
        _put_together(example, [next(encoded) for _ in asked], None if sent is None else sent[at])
        for at, (example, asked) in enumerate(zip(examples, requests, strict=True))
    ]


def _put_together(
    example: Example, encoded: Sequence[tuple[Prompt, tuple[list[int], ...]]], sent: Prompt | None = None
) -> EncodedExample:
    answers = [answer for _, continuations in encoded for answer in continuations]
    return EncodedExample(example, tuple(replace(prompt, sent=sent) for prompt, _ in encoded), tuple(answers))


def reader_of(lm: LM, task: Task) -> LM:
    """The same model, asked in the task's own words where it has some.

    Raises:
        UserError: as `Task.asked_in`.
    """
    if task.format is None and task.instruction is None:
        return lm
    reader = copy(lm)
    reader.format = task.asked_in(lm.format)
    return reader


def wording(lm: LM, task: Task, model: str) -> str | None:
    """A sentence on a task that words its own prompts; None where they are those of the reader's format.

    Args:
        lm: the reader.
        task: what it is asked.
        model: the reader, as the sentence names it.
    """
    if task.format is None or task.format == lm.format:
        return None
    if lm.format.template == "chat":
        return f"{task.name}: the benchmark's own words are the user's turn in the chat of {model}."
    return f"{task.name}: asked in the benchmark's own words, not in the prompt format of {model}."


def batches(items: Sequence[EncodedExample], batch_tokens: int) -> Iterator[list[EncodedExample]]:
    """Examples of similar length together, longest first, so that memory runs out at once or not at all.

    Batches follow the plain prompts and not the arm: all arms of a study see the same ones.

    Args:
        items: the examples.
        batch_tokens: the most tokens of one batch, rows times the longest row.
    """
    batch: list[EncodedExample] = []
    widest = rows = 0
    for item in sorted(items, key=_columns, reverse=True):
        widest, rows = max(widest, _columns(item)), rows + len(item.prompts)
        if batch and widest * rows > batch_tokens:
            yield batch
            batch, widest, rows = [], _columns(item), len(item.prompts)
        batch.append(item)
    if batch:
        yield batch


def columns_of(batch: Sequence[EncodedExample]) -> int:
    """Columns of a batch, padding included: rows times the longest row."""
    return max(map(_columns, batch)) * sum(len(item.prompts) for item in batch)


def total_columns(items: Sequence[EncodedExample]) -> int:
    """Columns of all examples, each alone."""
    return sum(_columns(item) * len(item.prompts) for item in items)


def _columns(item: EncodedExample) -> int:
    return max(prompt.tokens + sum(map(len, answers)) for prompt, answers in item.rows())

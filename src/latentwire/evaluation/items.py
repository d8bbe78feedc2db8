"""Examples made ready for a reader, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example, Prompt
from latentwire.tasks.base import Split, Task


@dataclass(frozen=True)
class Item:
    """An example made ready for a reader.

    prompts: one for all answers, or one an answer. answers: token ids. original: what the example was before an
    arm's variant changed it.
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
        """The prompts, each with the answers that are scored behind it."""
        if len(self.prompts) == 1:
            return [(self.prompt, self.answers)]
        return [(prompt, (answer,)) for prompt, answer in zip(self.prompts, self.answers, strict=True)]


def prepare(lm: LM, task: Task, split: Split, limit: int | None) -> list[Item]:
    """The task's examples, tokenized for a reader."""
    examples = task.examples(split, limit)
    if not examples:
        raise UserError(f"task: {task.name} has no examples in its {split} split.")
    reader = reading(lm, task)
    requests = [example.requests() for example in examples]
    # One call of the tokenizer for many texts costs a fraction of one call for each.
    flat = [request for each in requests for request in each]
    encoded = iter(reader.format.encode_all(flat, reader))
    return [
        _item(example, [next(encoded) for _ in each]) for example, each in zip(examples, requests, strict=True)
    ]


def item_of(example: Example, reader: LM, sent: Prompt | None = None) -> Item:
    """An example, tokenized for a reader. sent: the prompt whose message stands for its own."""
    return _item(example, reader.format.encode_all(list(example.requests()), reader), sent)


def _item(
    example: Example, encoded: Sequence[tuple[Prompt, tuple[list[int], ...]]], sent: Prompt | None = None
) -> Item:
    answers = [answer for _, behind in encoded for answer in behind]
    return Item(example, tuple(replace(prompt, sent=sent) for prompt, _ in encoded), tuple(answers))


def reading(lm: LM, task: Task) -> LM:
    """The same model, asked in the task's own words where it has some."""
    if task.format is None:
        return lm
    reader = copy(lm)
    reader.format = lm.format.around(task.format)
    return reader


def batches(items: Sequence[Item], batch_tokens: int) -> Iterator[list[Item]]:
    """Items of like length together, longest first, so that memory runs out at once or not at all.

    The composition follows the plain prompt and not the arm: all arms of a study see the same batches.
    """
    batch: list[Item] = []
    widest = rows = 0
    for item in sorted(items, key=_columns, reverse=True):
        widest, rows = max(widest, _columns(item)), rows + len(item.prompts)
        if batch and widest * rows > batch_tokens:
            yield batch
            batch, widest, rows = [], _columns(item), len(item.prompts)
        batch.append(item)
    if batch:
        yield batch


def _columns(item: Item) -> int:
    return max(prompt.tokens + sum(map(len, behind)) for prompt, behind in item.rows())

"""What each arm's reader got for each example, kept with a run so that a report shows it without any model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from latentwire.evaluation.encoded import EncodedExample
from latentwire.evaluation.variants import right_answers
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Example
from latentwire.process_group import Group

PROMPTS = "prompts.jsonl"
"""The file in a run's folder."""
MOST = 2000
"""How many examples of each task are kept; the rest have outcomes only."""
CONTEXT, QUESTION = "\ue000", "\ue001"
"""What stands in a kept prompt for the example's own context and question (private-use characters of Unicode)."""


class KeptPrompts:
    """Collects, task by task, examples and the prefixes that arms delivered for them.

    A line holds `task`, `id`, `context`, `question`, `gold`, `choices` and `arms`: by arm its `pieces`, each
    `[text, block, tokens]` with `null` for the text of embeddings; `memory`, the columns of keys and values before
    them; `layers` in which blocks count; `leaky`; and `gold`, where the arm's variant asks for another answer.
    Of an example with one prompt for each choice, the first is kept.
    """

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str], Example] = {}
        self._arms: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}

    def begin(self, task: str, examples: Sequence[Example]) -> None:
        """Take up a task: its first `MOST` examples will be kept."""
        for example in examples[:MOST]:
            self._examples.setdefault((task, example.id), example)

    def add(self, task: str, arm: str, batch: Sequence[EncodedExample], prefix: Prefix, lm: LM) -> None:
        """Keep what an arm delivered for a batch of examples, whose prompts are the prefix's rows in order."""
        wanted = [(task, item.example.id) in self._examples for item in batch]
        if not any(wanted):
            return
        columns = prefix.columns
        valid, blocks = columns.valid.tolist(), columns.blocks.tolist()
        ids = None if prefix.ids is None else prefix.ids.tolist()
        memory = None if prefix.memory is None else prefix.memory.columns.valid.sum(1).tolist()
        row = 0
        for item, keep in zip(batch, wanted, strict=True):
            if keep:
                real = [at for at, each in enumerate(valid[row]) if each]
                tokens = None if ids is None else [ids[row][at] for at in real]
                base = self._examples[task, item.example.id]
                pieces = list(
                    _pieces(tokens, [blocks[row][at] for at in real], lm, _stand_ins(item.example, base))
                )
                entry: dict[str, Any] = {"pieces": pieces}
                if memory is not None:
                    entry["memory"] = memory[row]
                if prefix.layers is not None:
                    entry["layers"] = str(prefix.layers)
                if prefix.leaky:
                    entry["leaky"] = True
                if (gold := _gold(item.example)) != _gold(base):
                    entry["gold"] = gold
                self._arms.setdefault((task, item.example.id), {})[arm] = entry
            row += len(item.prompts)

    def exchange(self, task: str, arm: str, group: Group) -> None:
        """Take in what the other processes have kept of an arm whose batches they share."""
        mine = {key: of[arm] for key, of in self._arms.items() if key[0] == task and arm in of}
        for theirs in group.gathered(mine):
            for key, entry in theirs.items():
                self._arms.setdefault(key, {}).setdefault(arm, entry)

    def lines(self, task: str, names: Mapping[str, str]) -> Iterator[str]:
        """A line of JSON for each kept example of a task, in the task's order.

        Args:
            names: what each arm is called in the file, by its label.
        """
        for (of, id_), example in self._examples.items():
            if of == task:
                arms = {names[arm]: entry for arm, entry in self._arms.get((of, id_), {}).items()}
                line = {
                    "task": of,
                    "id": id_,
                    "context": example.context,
                    "question": example.question,
                    "gold": _gold(example),
                    "choices": list(example.choices),
                    "arms": arms,
                }
                yield json.dumps(line, ensure_ascii=False) + "\n"


def lines_of(path: Path, tasks: Collection[str]) -> list[str]:
    """The lines that an earlier attempt at an evaluation wrote for tasks; none where it wrote no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line for line in file if json.loads(line)["task"] in tasks]


def _gold(example: Example) -> list[str]:
    return list(dict.fromkeys(right_answers(example)))


def _stand_ins(asked: Example, base: Example) -> list[tuple[str, str]]:
    """The texts of a prompt that need not be kept twice; a variant's own texts are kept whole."""
    texts = [(base.context, CONTEXT, asked.context), (base.question, QUESTION, asked.question)]
    return [(text, mark) for text, mark, own in texts if text and own == text]


def _pieces(
    ids: list[int] | None, blocks: Sequence[int], lm: LM, stand_ins: Sequence[tuple[str, str]]
) -> Iterator[list[Any]]:
    """Runs of columns with the same block id: text, block id, number of columns."""
    at = 0
    for block, run in groupby(blocks):
        length = len(list(run))
        text = None
        if ids is not None:
            text = str(lm.tokenizer.decode(ids[at : at + length], skip_special_tokens=False))
            for own, mark in stand_ins:
                text = text.replace(own, mark)
        yield [text, block, length]
        at += length

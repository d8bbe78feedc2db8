"""Benchmarks whose official files are read without lm-eval, word for word as lm-eval asks them.

A machine that only evaluates often lacks lm-eval and `datasets`. The definitions below are those of lm-eval 0.4.13
(`lm_eval/tasks/{piqa,openbookqa,gsm8k}`); `tests/tasks/test_worded.py` holds them to its task objects: the same
examples, ids and groups, so that runs on both kinds of machine can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks import official
from latentwire.tasks.base import Split, Task
from latentwire.tasks.data_files import digest
from latentwire.tasks.official import Document

if TYPE_CHECKING:
    from latentwire.lm.prompt_format import PromptFormat

FEWSHOT_SEED = 1234  # lm-eval's default, so that the same examples are drawn
MAX_NEW_TOKENS = 256  # lm-eval's default for a task that names no length
UNREADABLE = "[invalid]"  # what its regex filter gives back where nothing matches

_SHOTS = 5
_STOP = ("Question:", "</s>", "<|im_end|>")
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


def _piqa(name: str, data: Path) -> Task:
    """PIQA (Bisk et al., 2020): two ways to reach a goal."""
    documents = official.documents("piqa", data)
    return _choices(name, ((_asked(doc["goal"]), (doc["sol1"], doc["sol2"]), doc["label"]) for doc in documents))


def _openbookqa(name: str, data: Path) -> Task:
    """OpenBookQA (Mihaylov et al., 2018): four ends of a sentence."""
    documents = official.documents("openbookqa", data)
    return _choices(name, map(_ends, documents))


def _gsm8k(name: str, data: Path) -> Task:
    """GSM8K (Cobbe et al., 2021): word problems after five worked ones, judged by the number after `####`."""
    documents, worked = official.documents("gsm8k", data), official.training("gsm8k", data)

    def examples() -> Iterator[Example]:
        draw = Random(FEWSHOT_SEED)
        for at, doc in enumerate(documents):
            shots = draw.sample(worked, _SHOTS) if worked else []
            before = (f"{_asked(shot['question'])} {shot['answer']}" for shot in shots)
            context = "\n\n".join(chain(before, [_asked(doc["question"])]))
            yield Example(
                id=f"{digest(context, doc['answer'])}-{at}",
                group=digest(_asked(doc["question"])),
                context=context,
                question="",
                answers=(doc["answer"],),
            )

    return Task(
        name=name,
        answer="solution",
        source=kept(examples(), name),
        max_new_tokens=MAX_NEW_TOKENS,
        stop=_STOP,
        format=raw_format(" "),
        judge=_judged,
        remark="" if worked else zero_shot(name, _SHOTS, data),
    )


KINDS: dict[str, Callable[[str, Path], Task]] = {"piqa": _piqa, "openbookqa": _openbookqa, "gsm8k": _gsm8k}
"""By lm-eval's name of the task, what makes a task of its official files under any name."""


def raw_format(delimiter: str) -> PromptFormat:
    """The format of a prompt that a benchmark words itself."""
    from latentwire.lm.prompt_format import PromptFormat

    return PromptFormat(template="raw", anchor="", delimiter=delimiter)


def zero_shot(name: str, shots: int, data: Path) -> str:
    """The remark of a task without a file that worked examples are drawn from."""
    return f"{name}: asked zero-shot, not {shots}-shot as lm-eval does, for want of a train file beside {data}."


def kept(examples: Iterator[Example], name: str) -> Callable[[Split], Iterator[Example]]:
    """A source that builds each example when it is first needed, and only once."""
    made: list[Example] = []

    def source(split: Split) -> Iterator[Example]:
        if split != "test":
            raise UserError(f"split: lm-eval fixes the documents of {name}; found {split!r}, expected 'test'.")
        at = 0
        while True:
            if at == len(made):
                following = next(examples, None)
                if following is None:
                    return
                made.append(following)
            yield made[at]
            at += 1

    return source


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _ends(doc: Document) -> tuple[str, tuple[str, ...], int]:
    choices = doc["choices"]
    return doc["question_stem"], tuple(choices["text"]), choices["label"].index(doc["answerKey"].lstrip())


def _choices(name: str, asked: Iterator[tuple[str, tuple[str, ...], int]]) -> Task:
    """A task of prompts with their choices and the position of the right one."""
    examples = (
        Example(
            id=f"{digest(context, *choices)}-{at}",
            group=digest(context),
            context=context,
            question="",
            choices=choices,
            gold=gold,
        )
        for at, (context, choices, gold) in enumerate(asked)
    )
    return Task(name=name, answer="choice", source=kept(examples, name), format=raw_format(" "))


def _judged(text: str, example: Example) -> dict[str, float]:
    """Exact match of lm-eval's filter `strict-match`, and whether it finds no number."""
    found = _STRICT.findall(text)
    read = found[0].strip() if found else UNREADABLE
    exact = _comparable(read) == _comparable(example.answers[0])
    return {"exact_match": float(exact), "unreadable": float(read == UNREADABLE)}


def _comparable(text: str) -> str:
    for pattern in _IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()

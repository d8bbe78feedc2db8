"""Controls that change examples, for any wire: `deranged` and `counterfactual`.

What is changed depends on the set of examples only, never on their order, the wire or a random state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from latentwire.errors import UserError
from latentwire.evaluation.metrics import contains, normalize
from latentwire.lm.prompts import Example

Variant = Literal["deranged", "counterfactual"]


def deranged(examples: Sequence[Example], task: str) -> list[Example]:
    """Every example with the context of another, in the same order.

    The other is of another group and wants the same type of answer, and its context does not hold the gold
    answer: a reader that has learned what such answers look like keeps that, and loses what this one is.

    Raises:
        UserError: an example has no context or has its choices in it, or no other fits.
    """
    return [replace(each, context=of.context) for each, of in zip(examples, partners(examples, task), strict=True)]


def partners(examples: Sequence[Example], task: str, *, whole: bool = False) -> list[Example]:
    """For every example the one that `deranged` takes the context of.

    Args:
        whole: the whole prompt is taken, so that none needs a context, and the gold answer stands nowhere in it.

    Raises:
        UserError: as `deranged`.
    """
    ring = _Ring(examples)
    return [_partner(each, ring, task, whole) for each in examples]


def _partner(example: Example, ring: _Ring, task: str, whole: bool) -> Example:
    if not (example.context or whole) or (example.choices and example.answers):
        raise UserError(f"{task}: deranged exchanges contexts, found {example.id} without one of its own.")

    def fits(other: Example) -> bool:
        taken = f"{other.context} {other.question}" if whole else other.context
        return bool(taken) and not any(_stands(gold, taken) for gold in golds(example))

    found = next(ring.others(example, fits), None)
    if found is None:
        raise UserError(
            f"{task}: deranged found no context of another group without the answer to {example.id} among "
            f"{len(ring)} examples, expected more of them."
        )
    return found


def counterfactual(examples: Sequence[Example], task: str) -> list[Example | None]:
    """Every example with its gold answer exchanged for another value, in the context and as what is expected.

    The foil is the gold answer to another group's question of the same type and stands nowhere in this context.
    A choice gets the foil as one choice more, so that the old answer may still be chosen. None where the exchange
    is impossible: the context does not hold the answer word for word, the question holds it, or no foil fits.

    Raises:
        UserError: it is impossible everywhere.
    """
    ring = _Ring(examples)
    swapped = [_swapped(each, ring) for each in examples]
    if not any(swapped):
        raise UserError(
            f"{task}: counterfactual exchanges an answer that the context states, found no such example among "
            f"{len(examples)}."
        )
    return swapped


def _swapped(example: Example, ring: _Ring) -> Example | None:
    known = golds(example)
    pattern = "|".join(re.escape(gold) for gold in sorted(known, key=len, reverse=True))
    stated = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)")
    if (example.choices and example.answers) or any(_stands(gold, example.question) for gold in known):
        return None

    def fits(other: Example) -> bool:
        foil = golds(other)[0]
        return not _stands(foil, f"{example.context} {example.question}") and foil not in example.choices

    other = next(ring.others(example, fits), None)
    if other is None:
        return None
    foil = golds(other)[0]
    context, count = stated.subn(lambda _: foil, example.context)
    if not count or any(_stands(gold, context) for gold in known):
        return None
    candidates = tuple(foil if each in known else each for each in example.candidates)
    if example.choices:
        choices = (*example.choices, foil)
        return replace(example, context=context, choices=choices, gold=len(choices) - 1, candidates=candidates)
    return replace(example, context=context, answers=(foil,), candidates=candidates)


class _Ring:
    """Examples in an order that their ids alone decide; who looks for a partner walks on from its own place."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._order = sorted(examples, key=lambda each: hashlib.sha256(each.id.encode()).digest())
        self._place = {each.id: at for at, each in enumerate(self._order)}
        self._types = [_types(each) for each in self._order]

    def __len__(self) -> int:
        return len(self._order)

    def others(self, example: Example, fits: Callable[[Example], bool]) -> Iterator[Example]:
        """Those of other groups that fit, of the nearest type that any of them has."""
        start = self._place[example.id]
        for level, wanted in enumerate(self._types[start]):
            found = False
            for step in range(1, len(self)):
                at = (start + step) % len(self)
                other = self._order[at]
                if self._types[at][level] == wanted and other.group != example.group and fits(other):
                    found = True
                    yield other
            if found:
                return


def golds(example: Example) -> tuple[str, ...]:
    """The right answers as they would stand in a context; of a worked solution, its result."""
    answers = (example.choices[example.gold],) if example.choices else example.answers
    return tuple(answer.rpartition("####")[2].strip() for answer in answers)


def _types(example: Example) -> tuple[str, str]:
    """What kind of answer is wanted, nearest first: how the question begins and whether a number answers it."""
    opening = normalize(example.question).split()[:2]
    number = "number" if re.fullmatch(r"[\d.,$%-]+", golds(example)[0]) else "words"
    return f"{' '.join(opening)} {number}", f"{' '.join(opening[:1])} {number}"


def _stands(part: str, text: str) -> bool:
    return contains(normalize(text), normalize(part))

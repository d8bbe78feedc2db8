"""Controls that change examples, for any wire: `deranged` and `counterfactual`.

What changes depends on the set of examples only, never on their order, the wire or a random state. An example that
a variant cannot change is None in its result; evaluations leave it out and report how many there were.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from latentwire.errors import UserError
from latentwire.evaluation.matching import contains, exchanged, normalize, spellings
from latentwire.lm.prompts import Example

Variant = Literal["deranged", "counterfactual"]


@dataclass(frozen=True)
class Partner:
    """The example whose context `deranged` takes. same_type: it wants the same type of answer."""

    example: Example
    same_type: bool


def deranged(examples: Sequence[Example], task: str) -> list[Example | None]:
    """Every example with the context of its partner (see `partners`), in the same order.

    A reader that has learned only what such answers look like keeps its score; one that reads its context loses
    it.

    Example:
        >>> task = resolve(["one_hop"], None)[0]
        >>> deranged(task.examples("test", 100), task.name)[0].context

    Raises:
        UserError: no example has a partner.
    """
    pairs = zip(examples, partners(examples, task), strict=True)
    return [replace(own, context=partner.example.context) if partner else None for own, partner in pairs]


def partners(examples: Sequence[Example], task: str, *, whole: bool = False) -> list[Partner | None]:
    """For every example the one whose context `deranged` takes.

    A partner belongs to another group, and none of the example's right answers is mentioned in its context.
    Partners that want the same type of answer (the question opens alike and a number answers both, or words do)
    are preferred; without one, any other group will do. None where an example has no context of its own, has its
    choices in the context, or no other group's context lacks its answers.

    Args:
        whole: the partner's whole prompt is taken and not its context alone: no example needs a context, and the
            right answers are not mentioned in the partner's question either.

    Raises:
        UserError: no example has a partner.
    """
    ring = _Ring(examples)
    own = [example for example in examples if (example.context or whole) and not _choices_in_context(example)]
    if not own:
        raise UserError(
            f"{task}: deranged exchanges contexts, found {examples[0].id} and {len(examples) - 1} others without "
            "one of their own, expected a task with contexts."
        )
    paired = {example.id: _partner(example, ring, whole) for example in own}
    if not any(paired.values()):
        raise UserError(
            f"{task}: deranged found no context of another group without the answer to {own[0].id}, or to any "
            f"other example, among {len(examples)} examples, expected more of them."
        )
    return [paired.get(example.id) for example in examples]


def _partner(example: Example, ring: _Ring, whole: bool) -> Partner | None:
    answers = [spellings(answer) for answer in right_answers(example)]

    def fits(other: Example) -> bool:
        text = f"{other.context} {other.question}" if whole else other.context
        return bool(text) and not any(ring.mentioned(answer, text) for answer in answers)

    found = next(ring.same_type(example, fits), None)
    if found is not None:
        return Partner(found, same_type=True)
    other = next(ring.any_type(example, fits), None)
    return Partner(other, same_type=False) if other is not None else None


def counterfactual(examples: Sequence[Example], task: str) -> list[Example | None]:
    """Every example with its right answer exchanged for another value, in the context and as what is expected.

    The new value is the right answer to another group's question of the same type and is not mentioned in this
    context. A choice gets it as one choice more, so that the old answer may still be chosen. None where the
    exchange
    is impossible: the context does not state the answer word for word, the question mentions it, or no value fits.

    Example:
        >>> task = resolve(["one_hop"], None)[0]
        >>> counterfactual(task.examples("test", 100), task.name)[0].answers

    Raises:
        UserError: it is impossible everywhere.
    """
    ring = _Ring(examples)
    changed = [_exchanged(example, ring) for example in examples]
    if not any(changed):
        raise UserError(
            f"{task}: counterfactual exchanges an answer that the context states, found no such example among "
            f"{len(examples)}."
        )
    return changed


def _exchanged(example: Example, ring: _Ring) -> Example | None:
    known = right_answers(example)
    answers = [spellings(answer) for answer in known]
    if _choices_in_context(example) or any(ring.mentioned(answer, example.question) for answer in answers):
        return None

    def fits(other: Example) -> bool:
        value = right_answers(other)[0]
        taken = ring.mentioned(spellings(value), f"{example.context} {example.question}")
        return not taken and value not in example.choices

    other = next(ring.same_type(example, fits), None)
    if other is None:
        return None
    value = right_answers(other)[0]
    context, count = exchanged(example.context, known, value)
    if not count or any(ring.mentioned(answer, context) for answer in answers):
        return None
    candidates = tuple(value if candidate in known else candidate for candidate in example.candidates)
    if example.choices:
        choices = (*example.choices, value)
        return replace(example, context=context, choices=choices, gold=len(choices) - 1, candidates=candidates)
    return replace(example, context=context, answers=(value,), candidates=candidates)


class _Ring:
    """Examples in an order that their ids alone decide; the search for a partner starts at an example's place."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._order = sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())
        self._place = {example.id: place for place, example in enumerate(self._order)}
        self._types = [_types(example) for example in self._order]
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        self._spelled: dict[str, tuple[str, str]] = {}
        for place, types in enumerate(self._types):
            for name in types:
                self._places[name].append(place)

    def mentioned(self, answer: tuple[str, str], text: str) -> bool:
        """`matching.mentions` of a spelled answer, every text spelled once."""
        if text not in self._spelled:
            self._spelled[text] = spellings(text)
        return any(contains(spelled, wanted) for spelled, wanted in zip(self._spelled[text], answer, strict=True))

    def same_type(self, example: Example, fits: Callable[[Example], bool]) -> Iterator[Example]:
        """Those of other groups that fit, of the nearest type that any of them has."""
        for name in self._types[self._place[example.id]]:
            matched = False
            for other in self._after(example, self._places[name], fits):
                matched = True
                yield other
            if matched:
                return

    def any_type(self, example: Example, fits: Callable[[Example], bool]) -> Iterator[Example]:
        """Those of other groups that fit."""
        return self._after(example, range(len(self._order)), fits)

    def _after(
        self, example: Example, places: Sequence[int], fits: Callable[[Example], bool]
    ) -> Iterator[Example]:
        start = bisect_right(places, self._place[example.id])
        for step in range(len(places)):
            other = self._order[places[(start + step) % len(places)]]
            if other.group != example.group and fits(other):
                yield other


def right_answers(example: Example) -> tuple[str, ...]:
    """The right answers as a context would state them; of a worked solution, its result."""
    answers = (example.choices[example.gold],) if example.choices else example.answers
    return tuple(answer.rpartition("####")[2].strip() for answer in answers)


def _types(example: Example) -> tuple[str, str]:
    """What kind of answer is wanted, nearest first: how the question opens and whether a number answers it."""
    opening = normalize(example.question).split()[:2]
    number = "number" if re.fullmatch(r"[\d.,$%-]+", right_answers(example)[0]) else "words"
    return f"2 {' '.join(opening)} {number}", f"1 {' '.join(opening[:1])} {number}"


def _choices_in_context(example: Example) -> bool:
    return bool(example.choices and example.answers)

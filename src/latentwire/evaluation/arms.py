"""An arm: a wire as it is evaluated, with what is done to the examples and who reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, get_args

from latentwire.errors import UserError, one_of
from latentwire.evaluation.items import Item, item_of, reading
from latentwire.evaluation.variants import Variant, counterfactual, deranged, partners
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example, Prompt
from latentwire.tasks.base import Task
from latentwire.wires import CONTROLS, Wire, split
from latentwire.wires import parse as parse_wire

VARIANTS: tuple[Variant, ...] = get_args(Variant)
SAMPLE = 64
"""How many contexts, each of another group, a wire meets before a task: what `mean` is the average of."""


@dataclass(frozen=True)
class Arm:
    """Written `WIRE[:VARIANT][@READER]`, as in `embedded:heron-4x:deranged@embedded:wren`.

    variant: what is done to the examples (what is done to the message belongs to the wire). reader: the model
    that reads, where a study has several; None for the one that is evaluated.
    """

    wire: Wire
    variant: Variant | None = None
    reader: str | None = None

    @classmethod
    def of(cls, arm: Wire | Arm) -> Arm:
        return arm if isinstance(arm, Arm) else cls(arm)

    @property
    def label(self) -> str:
        """As the command line writes it."""
        variant = f":{self.variant}" if self.variant else ""
        return self.wire.label + variant + (f"@{self.reader}" if self.reader else "")

    @property
    def leaks(self) -> bool:
        return self.wire.leaks

    def bind(self, lm: LM) -> Self:
        """This arm with its wire bound to the reader; see `Wire.bind`."""
        return replace(self, wire=self.wire.bind(lm))

    def reading(self, lm: LM, task: Task) -> LM:
        """Who reads over this (bound) arm, with the task's own prompt format where it has one."""
        return reading(self.wire.reader(lm), task)

    def prepared(self, lm: LM, task: Task, items: Sequence[Item]) -> tuple[Self, list[Item]]:
        """This (bound) arm and its own examples of a task, in order: those that its variant cannot change lack.

        Raises:
            UserError: the variant has nothing to change, or the wire too few contexts to meet.
        """
        reader, first = reading(lm, task), dict[str, Prompt]()
        for item in items:
            first.setdefault(item.example.group, item.prompts[0])
        sample = dict(zip(first, self.wire.carried(list(first.values())[:SAMPLE], reader), strict=False))
        akin = {
            text: sample[item.example.group]
            for item in items
            if item.example.group in sample
            for text in self.wire.carried(item.prompts, reader)
        }
        met = replace(self, wire=self.wire.sampled(list(sample.values()), akin))
        examples = [item.example for item in items]
        if self.variant is None:
            return met, list(items)
        if self.variant == "deranged" and self.wire.keeps_text:
            others = partners(examples, task.name, whole=self.wire.question_aware)
            return met, [_sending(*each, reader) for each in zip(examples, examples, others, strict=True)]
        changed: Sequence[Example | None] = (
            deranged(examples, task.name) if self.variant == "deranged" else counterfactual(examples, task.name)
        )
        made = [(old, new) for old, new in zip(examples, changed, strict=True) if new is not None]
        if self.wire.keeps_text:
            # Text that the reader sees itself would bring the changed answer without the message.
            kept = [(old, replace(new, context=old.context), new) for old, new in made]
            return met, [_sending(*each, reader) for each in kept]
        return met, [replace(item_of(new, reader), original=old) for old, new in made]


def _sending(original: Example, asked: Example, of: Example, reader: LM) -> Item:
    """An example asked over the message of another's context and question."""
    sent = Prompt(context=of.context, question=of.question)
    return replace(item_of(asked, reader, sent), original=original)


def parse(text: str) -> Arm:
    """An arm from `WIRE[:VARIANT][@READER]`.

    Raises:
        UserError: an unknown wire or variant (the nearest valid is named), or no reader behind `@`.
    """
    text = text.strip()
    written, at, reader = text.rpartition("@")
    if not at or Path(text).is_dir():
        written, reader = text, ""
    elif not reader:
        raise UserError(f"wire: found {text!r}, expected a model behind '@'.")
    spec, variant = split(written)
    if variant in VARIANTS:
        return Arm(parse_wire(spec), variant, reader or None)
    if variant and variant not in CONTROLS:
        parse_wire(spec)
        valid = one_of(variant, (*VARIANTS, *CONTROLS))
        raise UserError(f"wire: found {variant!r} behind {spec}, expected {valid}.")
    return Arm(parse_wire(written), None, reader or None)

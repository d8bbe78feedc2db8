"""What a study derives from its readings: effects, paired comparisons, and conditions on effects (gates)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from latentwire.errors import one_of
from latentwire.training.settings import Settings

Effect = Literal[
    "damage",
    "retention",
    "gain",
    "recovery",
    "recovery_of_plain",
    "side_effect",
    "interaction",
    "mask_interaction",
]


class After(Settings):
    """The two readings after a finetuning: with the mask, and without it.

    Attributes:
        ablated: The reading with the mask, STAGE/ARM.
        plain: The reading without it, STAGE/ARM.
    """

    ablated: str
    plain: str


class Effects(Settings):
    """Which effects to derive (see `studies.derived`). Readings are written STAGE/ARM.

    Attributes:
        baseline: The reading that everything is measured against.
        ablated: The same weights with another mask.
        none: The arm without context, whose score is a floor in the stages that have it.
        after: The readings after each finetuning, by its stage.
        crossed: By the stage of a finetuning under the mask, that of one without it on the same rows, both in
            `after`. The four readings after them are a 2 x 2 of the mask of finetuning and the mask of reading,
            whose interaction is derived.
        metrics: By task, the metric that effects are derived from, where that is not its primary one. The floor of
            such a task is the reading without context alone.
        retained: Readings whose retention to derive. Above the floor, retention is the share of the gap closed
            between reading nothing and reading the text.
    """

    baseline: str
    ablated: str | None = None
    none: str = "none"
    after: dict[str, After] = Field(default_factory=dict)
    crossed: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, str] = Field(default_factory=dict)
    retained: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _after_what(self) -> Self:
        if self.after and self.ablated is None:
            raise ValueError("ablated: found nothing, expected the reading that `after` is compared with")
        return self

    @model_validator(mode="after")
    def _crossed_are_read(self) -> Self:
        for under, without in self.crossed.items():
            for name in (under, without):
                if name not in self.after:
                    raise ValueError(
                        f"crossed: found {name!r}, expected {one_of(name, self.after)}, as in `after`"
                    )
            if under == without:
                raise ValueError(f"crossed.{under}: found the same finetuning, expected one without the mask")
        return self

    def readings(self) -> Iterator[tuple[str, str]]:
        """The key and STAGE/ARM of every reading."""
        yield "baseline", self.baseline
        if self.ablated is not None:
            yield "ablated", self.ablated
        for name, after in self.after.items():
            yield f"after.{name}.ablated", after.ablated
            yield f"after.{name}.plain", after.plain
        for at, reading in enumerate(self.retained):
            yield f"retained.{at}", reading

    def derived(self) -> Iterator[tuple[Effect, str]]:
        """Every effect with its reading."""
        if self.ablated is not None:
            yield "damage", self.ablated
            yield "retention", self.ablated
        for after in self.after.values():
            yield "retention", after.ablated
            yield "gain", after.ablated
            yield "recovery", after.ablated
            yield "recovery_of_plain", after.ablated
            yield "side_effect", after.plain
            yield "interaction", after.ablated
        for under in self.crossed:
            yield "mask_interaction", self.after[under].ablated
        for reading in self.retained:
            yield "retention", reading


class StudyComparison(Settings):
    """A paired difference a − b.

    Attributes:
        name: What the comparison is called in every table.
        task: The task whose examples are compared; `macro` for the mean over tasks.
        a: A reading, STAGE/ARM or oracles/NAME.
        b: The reading it is compared with.
        metric: A metric of the task; its primary one if not given.
        primary: Planned, and Holm-corrected together with the other primary comparisons; others are exploratory.
    """

    name: Annotated[str, StringConstraints(min_length=1)]
    task: str = "macro"
    metric: str | None = None
    a: str
    b: str
    primary: bool = False


class Condition(Settings):
    """A gate: a bound on an effect. If it does not hold, the study ends with exit status 1.

    Attributes:
        name: What the gate is called in every table.
        effect: Which effect is bounded.
        of: The reading, STAGE/ARM, whose effect it is.
        task: The task on which it is measured; `macro` for the mean over tasks.
        above_floor: Measure shares above the highest floor instead of above zero.
        at_least: The lowest value that holds.
        at_most: The highest value that holds. Exactly one of the two bounds is given.
    """

    name: Annotated[str, StringConstraints(min_length=1)]
    effect: Effect
    of: str
    task: str = "macro"
    above_floor: bool = False
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Condition:
        if (self.at_least is None) == (self.at_most is None):
            found = "neither" if self.at_least is None else "both"
            raise ValueError(f"found {found} of at_least and at_most, expected one of them")
        return self

"""What a mask costs a reader and what a finetuning recovers: effects derived from several readings.

In the formulas, b is the baseline and a the ablated reading (same weights, another mask). After a finetuning, x is
the ablated reading and p the plain one. f is the floor, and s, where recovery starts, the higher of a and f.
Damage and retention are also derived for a, with a as x. For the interaction of the mask of finetuning with the
mask of reading, x and p are the readings after a finetuning under the mask, y and q those after one without it.

The floor of a task is the highest of chance, `type_floor`, and the scores of the baseline and of the reading
without context (the `none` arms of their stages). The floor of a family or of `macro` is the mean of its tasks'
floors. A reading is *at its floor* if reading − floor is not resolved above 0: even a retention of 0.5 may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from latentwire.evaluation.combinations import Combination
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.pooled import BySeed, PooledArms, compare_pooled, shared_by_seed
from latentwire.evaluation.statistics import members
from latentwire.studies.claims import Effect, Effects

Readings = Mapping[str, Sequence[Outcome] | BySeed]
"""Outcomes by STAGE/ARM, or by STAGE/ARM and seed."""
Floors = Mapping[str, Mapping[str, float]]
"""By task, the floors that are numbers: `chance`, `type_floor`."""


@dataclass(frozen=True)
class Formula:
    """An effect of one reading, raw and above its floor: a sum of readings, or a ratio of two sums."""

    of: str
    raw: str
    raw_over: str | None
    above: str
    above_over: str


FORMULAS: dict[Effect, Formula] = {
    "damage": Formula("a", "b-a", None, "b-a", "b-f"),
    "retention": Formula("x", "x", "b", "x-f", "b-f"),
    "gain": Formula("x", "x-a", None, "x-a", "b-f"),
    "recovery": Formula("x", "x-a", "b-a", "x-s", "b-s"),
    "recovery_of_plain": Formula("x", "x-a", "p-a", "x-s", "p-s"),
    "side_effect": Formula("p", "p-b", None, "p-b", "b-f"),
    "interaction": Formula("x", "x-a-p+b", None, "x-a-p+b", "b-f"),
    "mask_interaction": Formula("x", "x-p-y+q", None, "x-p-y+q", "b-f"),
}


@dataclass(frozen=True)
class Derived:
    """One effect of one reading on one task.

    Attributes:
        effect: Which effect.
        of: The reading, STAGE/ARM.
        task: A task, a family or `macro`.
        raw: Its value and interval.
        above_floor: The same above the floor.
        floor: The floor's value.
        floor_is: What the floor is made of.
        at_floor: Whether the reading is not resolved above its floor.
        n: How many examples it rests on.
    """

    effect: Effect
    of: str
    task: str
    raw: Combination
    above_floor: Combination
    floor: float
    floor_is: str
    at_floor: bool
    n: int


def derive(effects: Effects, tasks: Sequence[str], readings: Readings, floors: Floors) -> list[Derived]:
    """Every effect that has all its readings, on every task.

    A task with a metric of its own in `effects.metrics` has no floor in `floors`: those are of the primary metric.

    Raises:
        ValueError: Readings differ in their examples.
    """
    letters = [(effect, named) for effect, named in _letters(effects) if set(named.values()) <= readings.keys()]
    derived = []
    scored = {name: _by_metric(by_seed(each), effects.metrics) for name, each in readings.items()}
    floors = {task: each for task, each in floors.items() if task not in effects.metrics}
    for task in tasks if letters else ():
        paired = shared_by_seed(
            [{seed: members(outcomes, task) for seed, outcomes in each.items()} for each in scored.values()]
        )
        part = dict(zip(scored, paired, strict=True))
        if not _first(paired[0]):
            continue  # the readings have no example of this task in common
        arms, called = PooledArms.of(part), {}
        for of in dict.fromkeys(named[FORMULAS[effect].of] for effect, named in letters):
            stages = dict.fromkeys(reading.split("/")[0] for reading in (effects.baseline, of))
            blind = [f"{stage}/{effects.none}" for stage in stages if f"{stage}/{effects.none}" in part]
            picks, called[of] = _floor(arms, _first(part[of]), blind, floors)
            arms = arms.with_mixed(f"floor of {of}", picks)
        for effect, named in letters:
            derived.append(_derive(effect, named, task, arms, part, called))
    return derived


def by_seed(reading: Sequence[Outcome] | BySeed) -> BySeed:
    """A reading's outcomes by seed; one without seeds has one entry."""
    return reading if isinstance(reading, Mapping) else {"": reading}


def _by_metric(reading: BySeed, metrics: Mapping[str, str]) -> BySeed:
    """The same outcomes, with the metric named for their task as the primary one."""

    def primary(outcome: Outcome) -> Outcome:
        name = metrics.get(outcome.task)
        if name is None:
            return outcome
        return replace(outcome, metrics={name: outcome.metrics[name], **outcome.metrics})

    return (
        {seed: [primary(each) for each in outcomes] for seed, outcomes in reading.items()} if metrics else reading
    )


def _first(reading: BySeed) -> Sequence[Outcome]:
    return next(iter(reading.values()))


def _letters(effects: Effects) -> Iterator[tuple[Effect, dict[str, str]]]:
    """Every effect with the readings that the letters of its formula stand for."""
    for reading in effects.retained:
        yield "retention", {"b": effects.baseline, "x": reading}
    if effects.ablated is None:
        return
    before = {"b": effects.baseline, "a": effects.ablated}
    yield "damage", before
    yield "retention", {**before, "x": effects.ablated}
    for after in effects.after.values():
        named = {**before, "x": after.ablated, "p": after.plain}
        for effect in FORMULAS:
            if effect not in ("damage", "mask_interaction"):
                used = set(re.findall("[abxp]", FORMULAS[effect].raw + (FORMULAS[effect].raw_over or "")))
                yield effect, {letter: reading for letter, reading in named.items() if letter in used | {"b", "a"}}
    for under, without in effects.crossed.items():
        x, y = effects.after[under], effects.after[without]
        yield "mask_interaction", {**before, "x": x.ablated, "p": x.plain, "y": y.ablated, "q": y.plain}


def _derive(
    effect: Effect,
    named: dict[str, str],
    task: str,
    arms: PooledArms,
    part: Mapping[str, BySeed],
    called: Mapping[str, str],
) -> Derived:
    formula = FORMULAS[effect]
    of = named[formula.of]
    at = f"floor of {of}"
    named = {**named, "f": at}
    if "a" in named:
        named["s"] = at if arms.value(at) > arms.value(named["a"]) else named["a"]
    if formula.raw_over is not None:
        raw = arms.ratio(_weights(formula.raw, named), _weights(formula.raw_over, named))
    elif len(formula.raw) == 3:  # a difference of two: the same numbers as a comparison's
        pair = compare_pooled(part[named[formula.raw[0]]], part[named[formula.raw[2]]])
        raw = Combination(pair.difference, pair.low, pair.high)
    else:
        raw = arms.linear(_weights(formula.raw, named))
    above = arms.ratio(_weights(formula.above, named), _weights(formula.above_over, named))
    low = arms.linear({of: 1, at: -1}).low
    return Derived(
        effect, of, task, raw, above, arms.value(at), called[of], low is None or low <= 0, len(_first(part[of]))
    )


def _weights(formula: str, named: Mapping[str, str]) -> dict[str, float]:
    """`x-a` as a linear combination; letters of the same reading add up."""
    weights: dict[str, float] = {}
    for sign, letter in re.findall(r"([+-]?)([a-z])", formula):
        weights[named[letter]] = weights.get(named[letter], 0.0) + (-1.0 if sign == "-" else 1.0)
    return weights


def _floor(
    arms: PooledArms, outcomes: Sequence[Outcome], blind: Sequence[str], floors: Floors
) -> tuple[list[str | float], str]:
    """By task, the highest floor (an arm or a number), and the names of these floors."""
    picks: list[str | float] = []
    called = []
    means = {name: arms.means(name) for name in blind}
    for at, task in enumerate(sorted({outcome.task for outcome in outcomes})):
        known: dict[str, tuple[float, str | float]] = {"none known": (0.0, 0.0)}
        known |= {name: (value, value) for name, value in floors.get(task, {}).items()}
        known |= {name: (float(mean[at]), name) for name, mean in means.items()}
        best = max(known, key=lambda name: known[name][0])
        picks.append(known[best][1])
        called.append(best)
    return picks, ", ".join(dict.fromkeys(called))

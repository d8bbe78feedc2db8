"""`seeds: [0, 1, 2]` in a study: every training, and every evaluation of one, becomes a stage for each seed.

A training `fit` becomes fit-seed0, fit-seed1 and fit-seed2; an evaluation `after` that starts from it, or reads
over its wire, becomes after-seed0 to after-seed2. Comparisons, effects and gates go on naming `after/text`: the
arm over all seeds (`evaluation.pooled`). Stages that need no training stay as they are.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from latentwire.errors import UserError
from latentwire.studies.mistakes import SHARED, SWEPT, shown
from latentwire.studies.stages.base import TRAINED, seed_stage

SEEDS = "seeds"
_ARM = re.compile(rf"{re.escape(TRAINED)}([^:@]*)(.*)", re.DOTALL)


def replicated(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A study in which every stage that a seed changes is replaced by one for each of the study's `seeds`.

    Args:
        raw: the study as written, its sweeps expanded.

    Raises:
        UserError: The seeds are malformed, or the study gives a seed elsewhere too.
    """
    if SEEDS not in raw:
        return dict(raw)
    seeds = _seeds(raw)
    stages = raw.get("stages")
    if not isinstance(stages, dict):
        return dict(raw)
    changed = _changed(stages)
    if not changed:
        raise UserError(
            f"{SEEDS}: found a study that trains nothing, expected a stage of kind {' or '.join(SWEPT)}."
        )
    oracles = raw.get("oracles")
    for name, readings in oracles.items() if isinstance(oracles, dict) else ():
        for reading in readings if isinstance(readings, list) else ():
            if str(reading).partition("/")[0] in changed:
                raise UserError(f"oracles.{name}: found {reading!r}, which has several seeds, expected one.")
    replicas: dict[str, Any] = {}
    for name, stage in stages.items():
        if name not in changed:
            replicas[name] = stage
            continue
        for seed in seeds:
            new = seed_stage(name, seed)
            if new in stages or new in replicas:
                raise UserError(f"{SEEDS}: found a second stage {new}, expected every name once.")
            replicas[new] = _under(stage, seed, changed)
    return {**raw, "stages": replicas}


def _seeds(raw: Mapping[str, Any]) -> list[int]:
    seeds = raw[SEEDS]
    whole = isinstance(seeds, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"{SEEDS}: found {shown(seeds)}, expected different whole numbers such as [0, 1, 2].")
    shared, stages = raw.get(SHARED), raw.get("stages")
    places = {"seed": raw, f"{SHARED}.seed": shared}
    places |= {f"stages.{name}.seed": stage for name, stage in stages.items()} if isinstance(stages, dict) else {}
    for key, place in places.items():
        if isinstance(place, dict) and "seed" in place:
            raise UserError(f"{key}: found it beside {SEEDS}, expected one of them.")
    return list(seeds)


def _changed(stages: Mapping[str, Any]) -> set[str]:
    """The stages that train, and those that need one of them, directly or not."""
    changed = {name for name, stage in stages.items() if isinstance(stage, dict) and stage.get("kind") in SWEPT}
    while more := {
        name
        for name, stage in stages.items()
        if isinstance(stage, dict) and name not in changed and changed & set(_needs(stage))
    }:
        changed |= more
    return changed


def _needs(stage: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(start := stage.get("start_from"), str):
        yield start
    arms = stage.get("arms")
    for text in arms.values() if isinstance(arms, dict) else ():
        if match := _ARM.fullmatch(str(text)):
            yield match[1]


def _under(stage: Mapping[str, Any], seed: int, changed: set[str]) -> dict[str, Any]:
    """A stage under a seed: what it needs is of the same seed."""

    def named(name: str) -> str:
        return seed_stage(name, seed) if name in changed else name

    replica = copy.deepcopy(dict(stage))
    if replica.get("kind") in SWEPT:
        replica["seed"] = seed
    if isinstance(start := replica.get("start_from"), str):
        replica["start_from"] = named(start)
    if isinstance(arms := replica.get("arms"), dict):
        replica["arms"] = {
            arm: f"{TRAINED}{named(match[1])}{match[2]}" if (match := _ARM.fullmatch(str(text))) else text
            for arm, text in arms.items()
        }
    objectives = replica.get("objectives")
    for each in objectives if isinstance(objectives, list) else ():
        if isinstance(each, dict) and (match := _ARM.fullmatch(str(each.get("wire", "")))):
            each["wire"] = f"{TRAINED}{named(match[1])}{match[2]}"
    return replica

"""Training stages with several values of their settings: `sweep` becomes plain stages when a study is loaded.

`sweep: {wire.encoder.select.ratio: [4, 8], seed: [0, 1]}` in a stage `fit` makes the stages fit-4-0 to fit-8-1.
`sweep: {loss: {kl: {objectives: [...]}, both: {objectives: [...], wire.encoder.unrotate: false}}}` makes fit-kl
and fit-both: here each point has a name and any settings.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from itertools import chain, product
from typing import Any

from latentwire.errors import UserError, one_of
from latentwire.studies.mistakes import SWEEP, SWEPT, shown
from latentwire.studies.paths import put
from latentwire.studies.stages.base import TRAINED

_WORD = re.compile(r"\$?([A-Za-z0-9_.-]+)")
"""A value that can be part of a stage's name; for `$NAME` it is the name."""
_STAGE = re.compile(r"([^:@]*)(.*)", re.DOTALL)
"""A stage's name, and the variant and reader after it."""
Points = dict[str, dict[str, Any]]
"""By point, such as `4-0`, its values by dotted path."""


def expanded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A study in which every swept stage, and every arm over it, is replaced by one for each point, NAME-POINT.

    Raises:
        UserError: A sweep is malformed, or a swept stage is named where one of its points must be.
    """
    stages = raw.get("stages")
    if not isinstance(stages, dict) or not (every := swept(stages)):
        return dict(raw)
    made: dict[str, Any] = {}
    readings: dict[str, list[str]] = {}
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            made[name] = stage
        elif name not in every:
            made[name] = _followed(name, stage, {}, every)
            if isinstance(arms := stage.get("arms"), dict):
                made[name]["arms"] = _arms(name, arms, every, readings)
        else:
            alike = [each for each in every if every[each] == every[name]]
            for point, values in every[name].items():
                if (new := f"{name}-{point}") in stages or new in made:
                    raise UserError(
                        f"stages.{name}.{SWEEP}: found a second stage {new}, expected every name once."
                    )
                plain = copy.deepcopy({key: value for key, value in stage.items() if key != SWEEP})
                for path, value in values.items():
                    put(plain, path.split("."), value, f"stages.{name}.{SWEEP}.{path}")
                made[new] = _followed(name, plain, dict.fromkeys(alike, point), every)
    rest = {**raw, "stages": made}
    effects = raw.get("effects")
    if isinstance(effects, dict) and isinstance(retained := effects.get("retained"), list):
        them = [readings.get(each, [each]) if isinstance(each, str) else [each] for each in retained]
        rest["effects"] = {**effects, "retained": [*chain(*them)]}
    for key in ("effects", "oracles", "comparisons", "gates"):
        _refuse(key, rest.get(key), readings)
    return rest


def swept(stages: Mapping[str, Any]) -> dict[str, Points]:
    """The points of every swept stage; the values of the last path change fastest. Raises as `expanded`."""
    return {name: _points(name, of) for name, of in stages.items() if isinstance(of, dict) and SWEEP in of}


def _points(name: str, stage: Mapping[str, Any]) -> Points:
    key, sweep = f"stages.{name}.{SWEEP}", stage[SWEEP]
    if stage.get("kind") not in SWEPT:
        found = shown(stage.get("kind"))
        raise UserError(f"{key}: found it in a stage of kind {found}, expected one of kind {' or '.join(SWEPT)}.")
    if not isinstance(sweep, dict) or not sweep:
        raise UserError(f"{key}: found {shown(sweep)}, expected a mapping of dotted paths to lists of values.")
    choices = [_choices(path, values, key) for path, values in sweep.items()]
    points: Points = {}
    for combination in product(*choices):
        point = "-".join(word for word, _ in combination)
        if point in points:
            raise UserError(f"{key}: found two points called {name}-{point}, expected every value once.")
        points[point] = {path: value for _, settings in combination for path, value in settings.items()}
    return points


def _choices(path: Any, values: Any, key: str) -> list[tuple[str, dict[str, Any]]]:
    """What one entry of a sweep offers: by name, settings by dotted path."""
    _check_path(path, key)
    if isinstance(values, dict) and values:
        for name, settings in values.items():
            if not isinstance(settings, dict):
                raise UserError(f"{key}.{path}.{name}: found {shown(settings)}, expected a mapping of settings.")
            for setting in settings:
                _check_path(setting, f"{key}.{path}.{name}")
        return [(_word(name, f"{key}.{path}"), settings) for name, settings in values.items()]
    if not isinstance(values, list) or not values:
        raise UserError(f"{key}.{path}: found {shown(values)}, expected a list of values.")
    return [(_word(value, f"{key}.{path}"), {path: value}) for value in values]


def _check_path(path: Any, key: str) -> None:
    if not isinstance(path, str) or not all(path.split(".")):
        raise UserError(f"{key}: found {shown(path)}, expected a dotted path such as wire.encoder.rank.")


def _word(value: Any, key: str) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    match = _WORD.fullmatch(text) if isinstance(value, str | int | float) else None
    if match is None:
        raise UserError(f"{key}: found {shown(value)}, expected a word or a number: the stage is named by it.")
    return match[1]


def _followed(
    name: str, stage: dict[str, Any], at: Mapping[str, str], every: Mapping[str, Points]
) -> dict[str, Any]:
    """A stage that starts from points, or imitates them.

    Args:
        at: By swept stage, the point that this one goes with.
    """

    def point(swept: str, key: str) -> str:
        if swept in at:
            return f"{swept}-{at[swept]}"
        names = [f"{swept}-{value}" for value in every[swept]]
        raise UserError(
            f"stages.{name}.{key}: found {swept!r}, which is swept, expected one of {', '.join(names)}, "
            f"or the same {SWEEP} here."
        )

    made = dict(stage)
    if isinstance(start := stage.get("start_from"), str) and start in every:
        made["start_from"] = point(start, "start_from")
    if isinstance(objectives := stage.get("objectives"), list):
        made["objectives"] = objectives = [dict(term) if isinstance(term, dict) else term for term in objectives]
        for n, objective in enumerate(objectives):
            wire = objective.get("wire") if isinstance(objective, dict) else None
            if isinstance(wire, str) and wire.startswith(TRAINED) and (of := wire.removeprefix(TRAINED)) in every:
                objective["wire"] = TRAINED + point(of, f"objectives.{n}.wire")
    return made


def _arms(
    stage: str, arms: Mapping[str, Any], every: Mapping[str, Points], readings: dict[str, list[str]]
) -> dict[str, Any]:
    """The arms, with one for each point where a stage is swept; `readings` gets what STAGE/ARM has become."""
    made: dict[str, Any] = {}
    for arm, text in arms.items():
        match = _STAGE.fullmatch(str(text).removeprefix(TRAINED))
        of, rest = match.groups() if match else ("", "")
        if not isinstance(arm, str) or not str(text).startswith(TRAINED) or of not in every:
            made[arm] = text
            continue
        new = {f"{arm}-{at}": f"{TRAINED}{of}-{at}{rest}" for at in every[of]}
        if twice := [each for each in new if each in made or each in arms]:
            raise UserError(f"stages.{stage}.arms: found a second arm {twice[0]}, expected every name once.")
        made |= new
        readings[f"{stage}/{arm}"] = [f"{stage}/{each}" for each in new]
    return made


def _refuse(key: str, value: Any, readings: Mapping[str, list[str]]) -> None:
    """Refuse a reading that has become several."""
    if isinstance(value, str) and value in readings:
        raise UserError(f"{key}: found {value!r}, which is swept, expected {one_of(value, readings[value])}.")
    within = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, each in within:
        if at != "name":
            _refuse(f"{key}.{at}", each, readings)

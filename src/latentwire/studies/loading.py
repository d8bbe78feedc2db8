"""From a YAML file to a `Study`: whatever is wrong is told in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from latentwire.errors import UserError, one_of
from latentwire.studies import references, templates
from latentwire.studies.mistakes import SHARED, SWEEP, mistake, shown
from latentwire.studies.naming import in_full
from latentwire.studies.paths import put
from latentwire.studies.spec import Study
from latentwire.studies.sweeps import expanded, swept
from latentwire.training.wire.config import PRESETS


class _Loader(yaml.SafeLoader):
    """YAML without its silent trap, that of two equal keys one would be lost, and with every mistake marked."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # A scalar that looks like a date or is tagged as something that it is not.
            found = f"found {shown(node.value)}, which is no {node.tag.split(':')[-1]}"
            raise yaml.MarkedYAMLError(problem=found, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="found a key that is no text", problem_mark=key.start_mark)
            name = key.value
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"found the key {name!r} twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load(study: str, changes: Sequence[str] = (), preset: str | None = None) -> Study:
    """The study that a template's name or a file's path names, with `KEY=VALUE` changes applied first.

    A change to a swept stage is one to all of its points.

    Args:
        preset: sizes of all wire stages, over what the file says and under what is changed.

    Raises:
        UserError: one sentence with the key, what was found and what was expected.
    """
    text, where = _text(study)
    raw = _parse(text, where)
    if not isinstance(raw, dict):
        raise UserError(f"{where}: found {shown(raw)}, expected a mapping with name, model, tasks and stages.")
    if preset is not None:
        _size(raw, preset)
    for change in changes:
        _set(raw, change)
    try:
        raw = in_full(expanded(raw))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    try:
        made = Study.model_validate(whole := _with_shared(raw))
    except ValidationError as error:
        raise UserError(f"{where}: {mistake(error, whole, raw)}") from error
    try:
        references.check(made)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return made


def _text(study: str) -> tuple[str, str]:
    found = templates()
    path = Path(study)
    if study in found and not path.is_file():
        return found[study], study
    try:
        return path.read_text(encoding="utf-8-sig"), study
    except UnicodeDecodeError as error:
        raise UserError(f"study: {study} is not UTF-8 text, expected a YAML file.") from error
    except OSError as error:
        raise UserError(
            f"study: found no file {study!r} ({error.strerror}), expected a YAML file or {one_of(study, found)}."
        ) from error


def _apart(value: Any) -> Any:
    """The same value with nothing shared: an alias is a copy, so that changing one place changes no other."""
    if isinstance(value, dict):
        return {key: _apart(each) for key, each in value.items()}
    return [_apart(each) for each in value] if isinstance(value, list) else value


def _parse(text: str, where: str) -> Any:
    try:
        return _apart(yaml.load(text, Loader=_Loader))  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: {error.problem}, expected valid YAML.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}, expected valid YAML.") from error
    except RecursionError as error:
        raise UserError(f"{where}: found values nested too deeply, expected valid YAML.") from error


def _size(raw: dict[str, Any], preset: str) -> None:
    """Give every wire stage the sizes of a preset."""
    if preset not in PRESETS:
        raise UserError(f"--preset: found {preset!r}, expected {one_of(preset, PRESETS)}.")
    stages = raw.get("stages")
    every = stages.values() if isinstance(stages, dict) else ()
    fits = [stage for stage in every if isinstance(stage, dict) and stage.get("kind") == "wire"]
    if not fits:
        raise UserError("--preset: found a study that trains no wire, expected a stage of kind wire.")
    for stage in fits:
        stage.update(PRESETS[preset], preset=preset)


def _set(raw: dict[str, Any], change: str) -> None:
    """Apply `a.b.c=VALUE`, the value parsed as YAML; numbers count into lists.

    Mappings on the way are made; a stage is only by its `kind`, or whole.
    """
    key, equals, text = change.partition("=")
    path = key.strip().split(".")
    if path[0] == "stages" and path[2:3] == [SWEEP] and path[3:]:
        path[3:] = [".".join(path[3:])]  # a sweep's keys are paths themselves
    if not equals or not all(path):
        raise UserError(f"--set: found {change!r}, expected KEY=VALUE, such as stages.causal_ft.steps=100.")
    value = _parse(text, f"--set {key}")
    _check_there(raw, path)
    put(raw, path, value, f"--set: {key}")


def _check_there(raw: dict[str, Any], path: Sequence[str]) -> None:
    """Refuse a change that would change nothing, or make half a stage of a misspelt name."""
    stages = raw.get("stages")
    if not isinstance(stages, dict):
        return
    key = ".".join(path)
    if path[0] == "stages" and len(path) > 1 and path[2:3] != [SWEEP]:
        _check_swept(stages, path[1], ".".join(path[2:]), key)
    if path[0] == "stages" and len(path) > 2 and path[1] not in stages and path[2] != "kind":
        raise UserError(f"--set: {key}: found {path[1]!r}, expected {one_of(path[1], stages)}.")
    kinds = [stage.get("kind") for stage in stages.values() if isinstance(stage, dict)]
    if path[0] == SHARED and "finetune" not in kinds:
        raise UserError(f"--set: {key}: found a study that finetunes nothing, expected a stage of kind finetune.")


def _check_swept(stages: dict[str, Any], name: str, setting: str, key: str) -> None:
    """Refuse to change one point of a sweep, or what its points have values of their own for."""
    for each, points in swept(stages).items():
        if name in [f"{each}-{point}" for point in points]:
            raise UserError(f"--set: {key}: found a point of a sweep, expected {each}, which is all of them.")
        if name == each and setting in stages[name][SWEEP]:
            expected = f"stages.{name}.{SWEEP}.{setting}=[...]"
            raise UserError(f"--set: {key}: found what {name} sweeps, expected {expected}.")


def _with_shared(raw: dict[str, Any]) -> dict[str, Any]:
    """The study with its seed in every stage that trains, and with the shared settings in every finetune stage."""
    shared = raw.get(SHARED, {})
    if not isinstance(shared, dict):
        raise UserError(f"{SHARED}: found {shown(shared)}, expected a mapping of settings.")
    seed = {"seed": raw["seed"]} if "seed" in raw else {}
    below = {"finetune": {**seed, **shared}, "wire": seed}
    stages = raw.get("stages")
    rest = {key: value for key, value in raw.items() if key != SHARED}
    if isinstance(stages, dict):
        rest["stages"] = {
            name: _over(below.get(str(stage.get("kind")), {}), stage) if isinstance(stage, dict) else stage
            for name, stage in stages.items()
        }
    return rest


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` with what only `below` has; mappings are merged too, unless they are of different kinds."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        ours, theirs = above[key], below[key]
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours.get("kind") in (None, theirs.get("kind")):
            merged[key] = _over(theirs, ours)
    return merged

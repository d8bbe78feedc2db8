"""From a YAML file to a `Study`; a mistake becomes one sentence with its key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from latentwire.errors import UserError, one_of
from latentwire.runs.store import StudyFile
from latentwire.studies import references, templates
from latentwire.studies.mistakes import SHARED, SWEEP, mistake, shown
from latentwire.studies.naming import in_full
from latentwire.studies.paths import put
from latentwire.studies.seeding import replicated
from latentwire.studies.spec import Study
from latentwire.studies.sweeps import expanded, swept
from latentwire.training.wire.wire_training_config import PRESETS

_MOST_VALUES, _MOST_CHARACTERS = 100_000, 2**24
"""How many values a study may hold once its aliases are written out, and how long its file may be."""
_HIGHEST, _HIGHEST_SIZE, _HIGHEST_SEED = 10**8, 10**6, 2**63
"""No count, size or seed of a study is that high: a typing error would otherwise fill the memory."""
_SIZES = re.compile(r"\.wire\.|\.lora\.|(rows|row_tokens|passages|questions|reader_prefix)$")
"""Keys of what is held in memory at once."""


class _Loader(yaml.SafeLoader):
    """YAML with every mistake marked.

    It also refuses a key given twice, of which YAML silently loses one, and aliases that stand for more values
    than memory holds.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count_values(node, {}) > _MOST_VALUES:
            found = f"found aliases that stand for more than {_MOST_VALUES:,} values"
            raise yaml.MarkedYAMLError(problem=found, problem_mark=node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # A scalar that looks like a date, or has a tag that does not fit it.
            found = f"found {shown(node.value)}, which is not a valid {node.tag.split(':')[-1]}"
            raise yaml.MarkedYAMLError(problem=found, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="found a key that is not text", problem_mark=key.start_mark)
            name = key.value
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"found the key {name!r} twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load(study: str, changes: Sequence[str] = (), preset: str | None = None) -> Study:
    """The study of a template or a file.

    Args:
        study: A template's name or a file's path.
        changes: `KEY=VALUE` changes, applied before anything is checked. A change to a swept stage applies to all
            of its points.
        preset: Sizes for all wire stages: they override the file, and `changes` override them.

    Raises:
        UserError: One sentence with the key, what was found and what was expected.
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
        raw = in_full(replicated(expanded(raw)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    try:
        made = Study.model_validate(whole := _with_shared(raw))
    except ValidationError as error:
        raise UserError(f"{where}: {mistake(error, whole, raw)}") from error
    try:
        _refuse_booleans(whole, made.model_dump(), "")
        references.check(made)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return made.read_from(StudyFile(path=where, text=text, changes=tuple(changes), preset=preset))


def _text(study: str) -> tuple[str, str]:
    known = templates()
    path = Path(study)
    if study in known and not path.is_file():
        return known[study], study
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MOST_CHARACTERS + 1)
        if len(text) > _MOST_CHARACTERS:
            raise UserError(f"study: {study} has more than {_MOST_CHARACTERS:,} characters, expected a YAML file.")
        return text, study
    except UnicodeDecodeError as error:
        raise UserError(f"study: {study} is not UTF-8 text, expected a YAML file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"study: found no file {study!r} ({reason}), expected a YAML file or {one_of(study, known)}."
        ) from error


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for once every alias is written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # what an alias inside its own anchor counts
        inside: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            inside = chain.from_iterable(node.value)
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        known[id(node)] = 1 + sum(_count_values(each, known) for each in inside)
    return known[id(node)]


def _separate(value: Any, at: str = "") -> Any:
    """The same value with nothing shared: an alias becomes a copy, so that changing one place changes no other.

    Raises:
        UserError: A number or a text in it can be nothing that a study means.
    """
    if isinstance(value, dict):
        return {_separate(key, at): _separate(each, f"{at}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_separate(each, f"{at}.{n}") for n, each in enumerate(value)]
    key = at.removeprefix(".") or "the study"
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{key}: found {shown(value)}, expected text without NUL characters.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}: found {value}, expected a finite number.")
    if isinstance(value, int) and abs(value) >= (highest := _highest(key)):
        raise UserError(f"{key}: found {shown(value)}, expected a number below {highest:,}.")
    return value


def _highest(key: str) -> int:
    if "seed" in key:
        return _HIGHEST_SEED
    return _HIGHEST_SIZE if _SIZES.search(key) else _HIGHEST


def _refuse_booleans(raw: Any, settled: Any, at: str) -> None:
    """Refuse true and false where a number is meant: validation would take them for 1 and 0."""
    if isinstance(raw, dict) and isinstance(settled, dict):
        for key in raw.keys() & settled.keys():
            _refuse_booleans(raw[key], settled[key], f"{at}.{key}")
    elif isinstance(raw, list) and isinstance(settled, list | tuple):
        for n, (each, made) in enumerate(zip(raw, settled, strict=False)):
            _refuse_booleans(each, made, f"{at}.{n}")
    elif isinstance(raw, bool) and not isinstance(settled, bool):
        raise UserError(f"{at.removeprefix('.')}: found {str(raw).lower()}, expected a number.")


def _parse(text: str, where: str) -> Any:
    try:
        return _separate(yaml.load(text, Loader=_Loader))  # a SafeLoader
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
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
    """Apply `a.b.c=VALUE`, the value parsed as YAML; a number in the path is a position in a list.

    Missing mappings on the way are created, but a new stage only whole or by its `kind`.
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
    """Refuse a change without effect, and one that would create half a stage under a misspelt name."""
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
    """Refuse to change one point of a sweep, or a setting that the sweep itself gives values to."""
    for each, points in swept(stages).items():
        if name in [f"{each}-{point}" for point in points]:
            raise UserError(f"--set: {key}: found a point of a sweep, expected {each}, which is all of them.")
        if name == each and any(setting in settings for settings in points.values()):
            expected = f"stages.{name}.{SWEEP}.{setting}=[...]"
            raise UserError(f"--set: {key}: found what {name} sweeps, expected {expected}.")


def _with_shared(raw: dict[str, Any]) -> dict[str, Any]:
    """The study with its seed in every stage that trains, and the shared settings in every finetune stage."""
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
    """`above`, plus what only `below` has; mappings are merged too, unless they are of different kinds."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        ours, theirs = above[key], below[key]
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours.get("kind") in (None, theirs.get("kind")):
            merged[key] = _over(theirs, ours)
    return merged

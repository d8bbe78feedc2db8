"""The folder that is published: what was trained, the manifest, the numbers, and a study that does it again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.publishing.card_numbers import Evaluations
from latentwire.runs.store import METRICS, RECORD, Run, runs
from latentwire.wires.latent.hub_wires import names as is_hub_id
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.modules import CONFIG, WEIGHTS, key_of

STUDY = "study.yaml"
_PLACE = re.compile(r"(?<![\w.:/$}-])(~?/[\w.@+~-]+(?:/[\w.@+~ -]*[\w.@+~-])+/?)")
"""An absolute path of at least two parts, which is no part of an address on the web."""
_CONTEXT = ("tasks", "split", "limit", "dtype")
_BESIDE = ("bits", "dtypes", "prompts", "task_decoding")
"""Keys that a stage's configuration has from the study, and not from the stage itself."""


def gather(
    run: Run, trained: Path, evaluations: Evaluations, root: Path, call: Mapping[str, str], to: Path
) -> None:
    """Write everything that is published, but for the card, into an empty folder.

    Args:
        run: The run.
        trained: The folder of what it has trained.
        evaluations: Its evaluations.
        root: The folder of all runs.
        call: For a local model, the hub id by which others have it.
        to: The folder.

    Raises:
        UserError: A wire names a model that only this machine has.
    """
    for file in sorted(path for path in trained.rglob("*") if path.is_file()):
        place = to / file.relative_to(trained)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    if (trained / CONFIG).is_file():
        rename(to, call)
    manifest = run.record.model_dump(mode="json")
    write_atomically(to / RECORD, json.dumps(anonymous(manifest, call), indent=1, ensure_ascii=False) + "\n")
    for name, each in {**evaluations.reading, **evaluations.beside}.items():
        folder = to / "evaluations" / name
        folder.mkdir(parents=True)
        shutil.copyfile(each.folder / METRICS, folder / METRICS)
    write_atomically(to / STUDY, study(run, evaluations, root, call))


def rename(folder: Path, call: Mapping[str, str]) -> None:
    """Give the models of a wire the names by which others have them, in its configuration and its weights.

    Raises:
        UserError: A model is local and `call` has no name for it.
    """
    config = read_config(folder)
    for name in dict.fromkeys([config.source, *config.adapters]):
        known = call.get(name, name)
        if not (known.startswith("embedded:") or is_hub_id(known)):
            raise UserError(
                f"wire: found the local model {name}, which nobody else has, expected a hub id for it: "
                f"--call {name}=OWNER/NAME."
            )
    used = {name: hub for name, hub in call.items() if name in (config.source, *config.adapters)}
    if not used:
        return
    text = (folder / CONFIG).read_text(encoding="utf-8")
    write_atomically(folder / CONFIG, json.dumps(anonymous(json.loads(text), used), indent=1) + "\n")
    keys = {key_of(name): key_of(hub) for name, hub in used.items()}
    with safe_open(folder / WEIGHTS, "pt") as file:
        tensors = {_renamed(name, keys): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    save_file(tensors, folder / WEIGHTS)


def _renamed(name: str, keys: Mapping[str, str]) -> str:
    return ".".join(keys.get(part, part) for part in name.split("."))


def anonymous(value: Any, call: Mapping[str, str]) -> Any:
    """JSON without the places of this machine: of every absolute path, only its last part stays.

    Args:
        call: Names that are replaced as a whole, as keys too.
    """
    if isinstance(value, dict):
        return {anonymous(key, call): anonymous(each, call) for key, each in value.items()}
    if isinstance(value, list):
        return [anonymous(each, call) for each in value]
    if not isinstance(value, str):
        return value
    for local, hub in call.items():
        if value == local or value.endswith((f" {local}", f"@{local}")):
            return value.removesuffix(local) + hub
    return _PLACE.sub(lambda match: os.path.basename(match[0].rstrip("/")), value)


def study(run: Run, evaluations: Evaluations, root: Path, call: Mapping[str, str]) -> str:
    """A study of the run, of those it started from, and of its evaluations, as YAML.

    Tasks and data that were files are named by their files alone.
    """
    chain = [*_parents(run, root), run]
    measured = [*evaluations.beside.values(), *evaluations.reading.values()]
    known = {each.record.stage for each in (*chain, *measured)}
    # An evaluation may also read what other stages trained: without these it is another evaluation.
    measured = [each for each in measured if set(each.record.parents) <= known]
    model = str(run.record.configuration["model"])
    context = next((each.record.configuration for each in measured), {})
    whole: dict[str, Any] = {"name": run.record.study, "model": model}
    whole |= {key: context[key] for key in _CONTEXT if context.get(key) is not None}
    whole.setdefault("tasks", ["tiers"])
    prompts: dict[str, Any] = {}
    for each in (*chain, *measured):
        prompts |= each.record.configuration.get("prompts", {})
    whole |= {"prompts": prompts} if prompts else {}
    whole["stages"] = {each.record.stage: _stage(each, model) for each in (*chain, *measured)}
    text = yaml.safe_dump(anonymous(whole, call), sort_keys=False, allow_unicode=True, width=100)
    return f"# As the run recorded it. latentwire run {STUDY}\n\n{text}"


def _parents(run: Run, root: Path) -> list[Run]:
    """The runs that a run started from, earliest first."""
    found: list[Run] = []
    for stage, parent in run.record.parents.items():
        for other in runs(root, run.record.study, stage):
            if other.record.run == parent.run:
                found += [each for each in (*_parents(other, root), other) if each not in found]
    return found


def _stage(run: Run, model: str) -> dict[str, Any]:
    settings = dict(run.record.configuration)
    read_by = settings.pop("model", model)
    for key in (*_CONTEXT, *_BESIDE):
        settings.pop(key, None)
    if run.record.kind == "evaluate" and read_by != model:
        settings["model"] = read_by
    return {key: value for key, value in settings.items() if value is not None}

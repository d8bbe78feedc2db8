"""A study made definite: its tasks read, its inputs hashed, every stage with its identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latentwire import __version__
from latentwire.errors import UserError, one_of
from latentwire.runs.identity import file_sha256, identity, model_files, model_folder
from latentwire.runs.store import Input
from latentwire.studies import references
from latentwire.studies.spec import FileTask, Study
from latentwire.studies.stages import Evaluate, Finetune, FitWire, Source
from latentwire.tasks import data_files, read, resolve
from latentwire.tasks.base import Task, examples_sha256
from latentwire.tasks.files import read_bytes
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import locate

_PLACES = ("model", "start_from", "start_wire", "data")
"""Of a configuration, where files lie: that is no part of what a stage is, but what is in them."""


@dataclass(frozen=True)
class Planned:
    """A stage as it will be carried out. inputs: the files that it reads, with their hashes."""

    name: str
    stage: Evaluate | Finetune | FitWire
    configuration: dict[str, Any]
    inputs: dict[str, Input]
    identity: str

    @property
    def start_from(self) -> str | None:
        return self.stage.start_from

    @property
    def needs(self) -> list[str]:
        """The stages that must be done before it."""
        return self.stage.needs()

    @property
    def source(self) -> Source:
        """The weights that an evaluation or a finetuning reads with."""
        return self.configuration["model"], self.stage.start_from, self.stage.checkpoint


@dataclass(frozen=True)
class Plan:
    """A study, its tasks, the folders of its models, and its stages, each behind what it needs."""

    study: Study
    tasks: list[Task]
    models: dict[str, Path]
    stages: dict[str, Planned]

    @cached_property
    def reported(self) -> list[str]:
        """Names of tasks in order, families and `macro` included."""
        return references.reported_tasks(self.tasks)

    def needed(self, names: Sequence[str]) -> list[str]:
        """The stages `names` and what they start from, in the plan's order; all for no names.

        Raises:
            UserError: there is no such stage.
        """
        wanted: set[str] = set()
        for name in names:
            if name not in self.stages:
                raise UserError(f"--stage: found {name!r}, expected {one_of(name, self.stages)}.")
        left = list(names)
        while left:
            wanted.add(at := left.pop())
            left += self.stages[at].needs
        return [name for name in self.stages if name in wanted or not names]


def make(study: Study) -> Plan:
    """Read the tasks, hash the inputs.

    Raises:
        UserError: a task is unknown or its file wrong, the model is not there, a comparison speaks of a task
            that the study has not, or the split has no end or chooses a checkpoint.
    """
    tasks = _tasks(study)
    references.check_tasks(study, tasks)
    _check_split(study, tasks)
    folders = {spec: model_folder(spec) for spec in study.models()}
    weights = {spec: Input(path=spec, sha256=identity(model_files(path))) for spec, path in folders.items()}
    data = {task.name: examples_sha256(task.examples(study.split, study.limit)) for task in tasks}
    inputs = {
        f"task {entry.name}{'' if part == 'documents' else f' {part}'}": _file(path)
        for entry in study.tasks
        if isinstance(entry, FileTask)
        for part, path in data_files(entry.kind, entry.data).items()
    }
    plan: dict[str, Planned] = {}
    for name in _ordered(study):
        stage = study.stages[name]
        named = stage.model_dump(mode="json", exclude={"model"})
        model = (stage.model if isinstance(stage, Evaluate) else None) or study.model
        configuration: dict[str, Any] = {"model": model, **named}
        # A wire that is trained has its own encoder and readers, whatever the study's model.
        models = stage.models() if isinstance(stage, FitWire) else [] if stage.start_from else [model]
        relays = stage.relays() if isinstance(stage, Evaluate) else []
        start = [
            *(plan[need].identity for need in stage.needs()),
            *(weights[each].sha256 for each in (*models, *relays)),
        ]
        try:
            # A wire to start from is one of the stage's own source.
            beside = stage.imitated() if isinstance(stage, FitWire) else stage.elsewhere()
            sources = [read_config(locate(path)).source for path in beside]
            wires = _wires(stage)
            read, content = (inputs, data) if isinstance(stage, Evaluate) else _training_data(stage)
        except UserError as error:
            raise UserError(f"stages.{name}: {error}") from error
        read_with = [*(stage.models() if isinstance(stage, FitWire) else (model, *relays)), *sources]
        # Where a model lies changes no number beyond rounding.
        if bits := {each: 4 for each in read_with if each in study.loading and study.loading[each].bits}:
            configuration |= {"bits": bits}
        if asked := {each: study.prompts[each] for each in read_with if each in study.prompts}:
            configuration |= {"prompts": {each: how.model_dump(exclude_none=True) for each, how in asked.items()}}
        if isinstance(stage, Evaluate):
            configuration |= {"split": study.split, "limit": study.limit, "tasks": list(data)}
            configuration |= {"dtype": study.dtype or _default_dtype()}
        start += [each.sha256 for each in wires.values()]
        what = {key: value for key, value in configuration.items() if key not in _PLACES}
        parts = {"stage": what, "version": __version__, "start": start, "data": content}
        files = {
            **{f"model {each}" if at else "model": weights[each] for at, each in enumerate(models)},
            **{f"relay {each}": weights[each] for each in relays},
            **read,
            **wires,
        }
        plan[name] = Planned(name, stage, configuration, files, identity(parts))
    return Plan(study, tasks, folders, plan)


def _tasks(study: Study) -> list[Task]:
    found: dict[str, Task] = {}
    for at, entry in enumerate(study.tasks):
        if isinstance(entry, FileTask):
            made = [read(entry.kind, entry.data, entry.name)]
        else:
            try:
                made = resolve([entry], None)
            except UserError as error:
                raise UserError(
                    f"tasks.{at}: {str(error).removeprefix('task: ').rstrip('.')}; "
                    "a file of your own is written {name: NAME, kind: jsonl, data: PATH}."
                ) from error
        for task in made:
            if task.name in found:
                raise UserError(f"tasks.{at}: found {task.name!r} a second time, expected every task once.")
            found[task.name] = task
    return list(found.values())


def _wires(stage: Evaluate | Finetune | FitWire) -> dict[str, Input]:
    """The trained wires that a stage reads over, starts from or imitates and that no stage of the study trains."""
    folders = {path: locate(path) for path in stage.elsewhere()}
    return {
        f"wire {path}": Input(
            path=path, sha256=identity({f.name: file_sha256(f) for f in sorted(folder.iterdir())})
        )
        for path, folder in folders.items()
    }


def _check_split(study: Study, tasks: Sequence[Task]) -> None:
    """Refuse a split that never ends, and one by which a checkpoint was chosen that it is to judge."""
    files = {entry.name for entry in study.tasks if isinstance(entry, FileTask)}
    world = [task.name for task in tasks if task.name not in files and task.format is None]
    endless = [name for name in world if not name.startswith("shifted/")]  # these have no train split at all
    if study.split == "train" and study.limit is None and endless:
        raise UserError(f"limit: found none, expected a number: the train split of {endless[0]} has no end.")
    for name, stage in study.stages.items():
        if study.split == "validation" and not isinstance(stage, Evaluate):
            named = stage.data.world_tasks()
            seen = {task.name for task in resolve(list(named), None)} if named else set()
            if shared := [task for task in world if task in seen]:
                raise UserError(
                    f"split: found 'validation', expected 'test': stages.{name} chooses its checkpoint by the "
                    f"same examples of {shared[0]}."
                )


def _default_dtype() -> str:
    """What a model is read in that is given no dtype, as `lm.weights.load` has it."""
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def _ordered(study: Study) -> list[str]:
    """Stage names, each behind the one that it starts from, else as written."""
    order: list[str] = []

    def place(name: str) -> None:
        if name not in order:
            for need in study.stages[name].needs():
                place(need)
            order.append(name)

    for name in study.stages:
        place(name)
    return order


def _training_data(stage: Finetune | FitWire) -> tuple[dict[str, Input], Any]:
    """The files that a training reads, and what stands for its data in its identity."""
    files = {part: _file(path) for part, path in stage.data.files().items()}
    inputs = {f"training data {part}".rstrip(): file for part, file in files.items()}
    return inputs, stage.data.identity({part: file.sha256 for part, file in files.items()})


def _file(path: Path) -> Input:
    read_bytes(path)  # says in one sentence why it cannot be read
    return Input(path=str(path), sha256=file_sha256(path))

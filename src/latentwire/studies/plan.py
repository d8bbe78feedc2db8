"""A study made definite: its tasks read, its inputs hashed, every stage with its identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from latentwire import kinds
from latentwire.errors import UserError, one_of
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.prompts import Example
from latentwire.runs.identity import identity, model_files, model_folder
from latentwire.runs.store import Input, Run
from latentwire.studies import references
from latentwire.studies.model_loader import ModelLoader
from latentwire.studies.spec import FileTask, HubTask, Study
from latentwire.studies.stages import Stage
from latentwire.studies.stages.base import StudyContext, naming
from latentwire.studies.stages.training_stage import hashed_file
from latentwire.tasks import data_files, read, resolve
from latentwire.tasks import hub as hub_task
from latentwire.tasks.base import Split, Task, examples_sha256
from latentwire.version import __version__

_PLACES = ("model", "start_from", "start_wire", "data")
"""Settings that say where files are. Not the place belongs to an identity, but the files' content."""


@dataclass(frozen=True)
class Planned:
    """A stage as it will be carried out.

    Attributes:
        configuration: Its resolved settings, as `run.json` records them.
        inputs: The files and models that it reads, with their hashes.
        identity: The hash of everything that makes it what it is.
    """

    name: str
    stage: Stage
    configuration: dict[str, Any]
    inputs: dict[str, Input]
    identity: str

    @property
    def needs(self) -> list[str]:
        """The stages that must be done before it."""
        return self.stage.needs()


@dataclass(frozen=True)
class StudyPlan:
    """A study, what its stages share, the folders of its models, and its stages, each after what it needs."""

    study: Study
    context: StudyContext
    folders: dict[str, Path]
    stages: dict[str, Planned]

    @property
    def tasks(self) -> Sequence[Task]:
        return self.context.tasks

    def model_loader(self, runs: Mapping[str, Run]) -> ModelLoader:
        """What loads the study's models; `runs` are those that count for its stages."""
        return ModelLoader(self.study.loading, self.study.prompts, self.study.dtype, self.folders, runs)

    @cached_property
    def reported(self) -> list[str]:
        """Names of tasks in order, families and `macro` included."""
        return references.reported_tasks(self.tasks)

    def needed(self, names: Sequence[str]) -> list[str]:
        """The stages `names` and everything that they need, in the plan's order; all stages for no names.

        Raises:
            UserError: There is no such stage.
        """
        wanted: set[str] = set()
        left: list[str] = []
        for name in names:
            replicas = self.study.replicas(name)
            if not replicas:
                names_there = [*self.study.pooled_stages(), *self.stages]
                raise UserError(f"--stage: found {name!r}, expected {one_of(name, names_there)}.")
            left += replicas.values()
        while left:
            wanted.add(at := left.pop())
            left += self.stages[at].needs
        return [name for name in self.stages if name in wanted or not names]


def make(study: Study) -> StudyPlan:
    """Read the tasks, hash the inputs, and give every stage its identity.

    Raises:
        UserError: A task is unknown or its file wrong, a model is missing, a comparison names a task that the
            study does not have, or the split has no end or also chooses a checkpoint.
    """
    tasks = [_remembered(task, study.split, study.limit) for task in read_tasks(study)]
    references.check_tasks(study, tasks)
    _check_split(study, tasks)
    folders = {name: model_folder(name, study.loading.get(name, Loading()).revision) for name in study.models()}
    context = StudyContext(
        model=study.model,
        tasks=tasks,
        split=study.split,
        limit=study.limit,
        dtype=study.dtype,
        task_files={
            f"task {entry.name}{'' if part == 'documents' else f' {part}'}": hashed_file(path)
            for entry in study.tasks
            if isinstance(entry, FileTask)
            for part, path in data_files(entry.kind, entry.data).items()
        },
        task_hashes={task.name: examples_sha256(task.examples(study.split, study.limit)) for task in tasks},
        weights={name: Input(path=name, sha256=identity(model_files(path))) for name, path in folders.items()},
    )
    planned: dict[str, Planned] = {}
    for name in _ordered(study):
        planned[name] = _planned(name, study, context, planned)
    return StudyPlan(study, context, folders, planned)


def _planned(name: str, study: Study, context: StudyContext, earlier: dict[str, Planned]) -> Planned:
    stage = study.stages[name]
    with naming(name):
        described = stage.describe(context)
    configuration = {"model": stage.model_of(study.model), **stage.model_dump(mode="json", exclude={"model"})}
    # Where a model is placed changes no number beyond rounding; how many bits it has does.
    loading = {model: study.loading[model] for model in described.computed_by if model in study.loading}
    if bits := {model: how.bits for model, how in loading.items() if how.bits}:
        configuration |= {"bits": bits}
    if dtypes := {model: how.dtype for model, how in loading.items() if how.dtype}:
        configuration |= {"dtypes": dtypes}
    if prompts := {model: study.prompts[model] for model in described.computed_by if model in study.prompts}:
        asked = {model: settings.model_dump(exclude_none=True) for model, settings in prompts.items()}
        configuration |= {"prompts": asked}
    configuration |= described.configuration
    parts = {
        "stage": {key: value for key, value in configuration.items() if key not in _PLACES},
        "version": __version__,
        "start": [
            *(earlier[need].identity for need in stage.needs()),
            *(weights.sha256 for weights in described.weights.values()),
            *(wire.sha256 for wire in described.wires.values()),
        ],
        "data": described.data,
    }
    # Of classes from outside the code counts too: no version of this package stands for it.
    if own := kinds.code([configuration, [str(entry) for entry in study.tasks]]):
        parts["code"] = own
    inputs = {**described.weights, **described.files, **described.wires}
    return Planned(name, stage, configuration, inputs, identity(parts))


def read_tasks(study: Study) -> list[Task]:
    """The study's tasks in order. Raises `UserError` for one that is unknown, wrong or there twice."""
    tasks: dict[str, Task] = {}
    for at, entry in enumerate(study.tasks):
        if isinstance(entry, FileTask):
            named = [read(entry.kind, entry.data, entry.name, entry.fields, entry.max_unusable)]
        elif isinstance(entry, HubTask):
            named = [hub_task(**entry.model_dump(exclude={"kind", "limit", "instruction"}))]
        else:
            try:
                named = resolve([entry], None)
            except UserError as error:
                raise UserError(
                    f"tasks.{at}: {str(error).removeprefix('task: ').rstrip('.')}; "
                    "a file of your own is written {name: NAME, kind: jsonl, data: PATH}."
                ) from error
        if not isinstance(entry, str):
            named = [_limited(replace(task, instruction=entry.instruction), entry.limit) for task in named]
        for task in named:
            if task.name in tasks:
                raise UserError(f"tasks.{at}: found {task.name!r} a second time, expected every task once.")
            tasks[task.name] = task
    for name, how in study.decoding.items():
        if name not in tasks:
            raise UserError(f"decoding: found {name!r}, expected a task of this study: {one_of(name, tasks)}.")
        tasks[name] = replace(tasks[name], decoding=how)
    return list(tasks.values())


def _limited(task: Task, limit: int | None) -> Task:
    """The task with the first examples of each split alone."""
    return task if limit is None else replace(task, source=lambda split: islice(task.source(split), limit))


def _remembered(task: Task, split: Split, limit: int | None) -> Task:
    """The task, with the examples that the study asks for read or made only once."""
    examples: list[Example] = []

    def source(wanted: Split) -> Iterable[Example]:
        if wanted != split:
            return task.source(wanted)
        if not examples:
            examples.extend(task.examples(split, limit))
        return examples

    return replace(task, source=source)


def _check_split(study: Study, tasks: Sequence[Task]) -> None:
    """Refuse a split without end, and one that would judge a checkpoint by the examples that chose it."""
    files = {entry.name for entry in study.tasks if not isinstance(entry, str)}
    world = [task.name for task in tasks if task.name not in files and task.format is None]
    endless = [name for name in world if not name.startswith("shifted/")]  # these have no train split at all
    if study.split == "train" and study.limit is None and endless:
        raise UserError(f"limit: found none, expected a number: the train split of {endless[0]} has no end.")
    if study.split != "validation":
        return
    for name, stage in study.stages.items():
        chosen_by = stage.validation_tasks()
        if shared := [task for task in world if task in chosen_by]:
            raise UserError(
                f"split: found 'validation', expected 'test': stages.{name} chooses its checkpoint by the "
                f"same examples of {shared[0]}."
            )


def _ordered(study: Study) -> list[str]:
    """Stage names, each after the ones it needs, otherwise as written."""
    order: list[str] = []

    def place(name: str) -> None:
        if name not in order:
            for need in study.stages[name].needs():
                place(need)
            order.append(name)

    for name in study.stages:
        place(name)
    return order

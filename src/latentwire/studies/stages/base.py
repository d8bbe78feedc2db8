"""What every stage of a study can do: name what it needs, check itself, run, and report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import StringConstraints, model_validator

from latentwire.errors import UserError, one_of
from latentwire.process_group import ALONE, Group
from latentwire.runs.identity import file_sha256, identity
from latentwire.runs.log import Log
from latentwire.runs.store import Input
from latentwire.studies.model_loader import Checkpoint, ModelLoader, Source
from latentwire.tasks.base import Split, Task
from latentwire.training.objectives.imitation import STAGE
from latentwire.training.settings import Settings
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.latent_wire import locate

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A stage, an arm or a study is named like a folder, because it becomes one."""
TRAINED = STAGE
"""A wire that an earlier stage trained is written `stage:NAME`."""


@dataclass(frozen=True)
class StudyContext:
    """What all stages of a study share.

    Attributes:
        model: The study's model.
        tasks: What evaluations answer.
        split: The split that they answer, its first `limit` examples.
        dtype: The dtype that evaluations read in; None takes the machine's default.
        task_files: The files of tasks, by label, with their hashes.
        task_hashes: By task, the hash of its examples.
        weights: By model, the hash of its weights.
    """

    model: str
    tasks: Sequence[Task]
    split: Split
    limit: int | None
    dtype: str | None
    task_files: Mapping[str, Input]
    task_hashes: Mapping[str, str]
    weights: Mapping[str, Input]


@dataclass(frozen=True)
class Description:
    """Everything beside its own settings that makes a stage what it is: its identity is computed from this.

    Attributes:
        weights: The models it starts from, by their label in `run.json`.
        data: What stands for its data in the identity.
        files: The data files it reads, by their label in `run.json`.
        wires: The trained wires it uses that no stage of the study trains.
        configuration: Settings of the study that count as the stage's own.
        computed_by: The models whose arithmetic changes its numbers; rounded weights of these are another stage.
    """

    weights: Mapping[str, Input]
    data: Any
    files: Mapping[str, Input] = field(default_factory=dict)
    wires: Mapping[str, Input] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    computed_by: Sequence[str] = ()


@dataclass(frozen=True)
class StageWork:
    """What a stage is given to run: the study's context, its models, its run's folder, and who shares the work.

    All processes of the group run the stage; the first of them alone writes.
    """

    context: StudyContext
    models: ModelLoader
    folder: Path
    log: Log
    group: Group = ALONE


class Stage(Settings):
    """A stage of a study, and which weights it starts from.

    Attributes:
        start_from: The earlier stage whose weights (or, for a wire stage, whose wire) this one starts from; the
            study's model as it is if there is none.
        checkpoint: Which of that stage's checkpoints: the one with the lowest evaluation loss, or the one after
            its last step. Only `final` compares two finetunings after the same number of steps: where training
            improves nothing, the best weights are the untrained ones.
    """

    kind: str
    start_from: str | None = None
    checkpoint: Checkpoint = "best"

    described: ClassVar[str]
    """The kind in an error message: `an evaluation`."""
    starts_from: ClassVar[str] = "finetune"
    """The kind of stage that `start_from` may name."""
    section: ClassVar[Literal["evaluations", "finetunings"]]
    """Where `summary.json` reports its results."""
    changes_model: ClassVar[bool] = False
    """Whether it trains the weights of the study's model."""

    @model_validator(mode="after")
    def _checkpoint_of_a_stage(self) -> Self:
        if self.start_from is None and self.checkpoint != "best":
            raise ValueError(f"checkpoint: found {self.checkpoint!r} without start_from, whose checkpoint it is")
        return self

    # What it needs

    def needs(self) -> list[str]:
        """The stages that must be done before it."""
        return [self.start_from] if self.start_from else []

    def loads(self) -> list[str]:
        """The models it loads, other than the study's."""
        return []

    def finished_wires(self) -> list[str]:
        """The trained wires it uses that no stage of the study trains."""
        return []

    def model_of(self, study_model: str) -> str:
        """The model that its record names."""
        return study_model

    def beginning(self, study_model: str) -> str:
        """What it starts from, as the log says it."""
        return self.start_from or self.model_of(study_model)

    # What it offers to other stages and to the study's report

    @property
    def trained_wire(self) -> LatentConfig | None:
        """The wire it trains, if any."""
        return None

    def evaluated_arms(self) -> Mapping[str, str]:
        """The arms it evaluates, by name, each as written in the study; none for a stage that trains."""
        return {}

    def read_together(self) -> list[tuple[str, ...]]:
        """Groups of its arms that differ only in their readers."""
        return []

    def validation_tasks(self) -> list[str]:
        """The tasks of the made-up world whose validation split chooses its checkpoint."""
        return []

    def checkpoints(self) -> list[str]:
        """The checkpoints it leaves; none for a stage that does not train."""
        return []

    def seeds(self) -> dict[str, int]:
        """Its random seeds, by what they are for."""
        return {}

    def data_seen(self, results: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """What two finetunings that saw the same data have in common; None for other stages."""
        return None

    # What it does

    def check_references(self, name: str, stages: Mapping[str, Stage], model: str) -> None:
        """Check that the stages it names exist and are of the right kind.

        Args:
            name: Its own name.
            stages: All stages of the study, by name.
            model: The study's model.

        Raises:
            UserError: One is missing or of the wrong kind, or the stage waits for itself.
        """
        if self.start_from is None:
            return
        key = f"stages.{name}.start_from"
        known(key, self.start_from, stages, f"a {self.starts_from} stage")
        refuse_circle(stages, (name,))
        start = stages[self.start_from]
        if start.kind != self.starts_from:
            raise UserError(
                f"{key}: found {self.start_from!r}, {start.described}; expected a {self.starts_from} stage."
            )
        if self.checkpoint not in (kept := start.checkpoints()):
            raise UserError(
                f"stages.{name}.checkpoint: found {self.checkpoint!r}, expected one that {self.start_from} keeps, "
                f"{one_of(self.checkpoint, kept)}; its setting best says which."
            )

    def describe(self, context: StudyContext) -> Description:
        """What its identity is computed from. Raises `UserError` for files that cannot be read."""
        raise NotImplementedError

    @classmethod
    def check_all(cls, stages: Mapping[str, Self], context: StudyContext, models: ModelLoader) -> None:
        """Check stages of this kind that are about to run, together, before any folder exists.

        Raises:
            UserError: One of them cannot be carried out.
        """
        raise NotImplementedError

    def ready_with(self, context: StudyContext, models: ModelLoader) -> bool:
        """Whether the model it reads with is in memory already."""
        return False

    def run(self, work: StageWork) -> dict[str, Any]:
        """Carry it out in its run folder.

        Returns:
            Its results, as `run.json` records them. A stage whose `accept` list has an entry that was not held
            is rejected.

        Raises:
            UserError: It cannot go on because of its input.
        """
        raise NotImplementedError

    def summarise(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The part of its results that `summary.json` reports."""
        return dict(results)


def seed_stage(name: str, seed: int) -> str:
    """The stage that a stage becomes under one of a study's `seeds`."""
    return f"{name}-seed{seed}"


def trained_source(stage: Stage, context: StudyContext) -> Source:
    """The weights that an evaluation or a finetuning starts from."""
    return stage.model_of(context.model), stage.start_from, stage.checkpoint


def hashed_wires(paths: Iterable[str]) -> dict[str, Input]:
    """Trained wires with the hash of their files. Raises `UserError` where there is none."""
    folders = {path: locate(path) for path in paths}
    return {
        f"wire {path}": Input(
            path=path, sha256=identity({f.name: file_sha256(f) for f in sorted(folder.iterdir())})
        )
        for path, folder in folders.items()
    }


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the stage's name before the sentence of a `UserError` raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stages.{name}: {error}") from error


def refuse_circle(stages: Mapping[str, Stage], path: tuple[str, ...]) -> None:
    """Raise `UserError` if the last stage of a path needs one that is on the path already."""
    stage = stages[path[-1]]
    for need in stage.needs():
        if need not in stages:
            continue  # that stage's own check reports it
        if need in path:
            circle = [*path[path.index(need) :], need]
            found = "the stage itself" if len(circle) == 2 else f"a circle ({' from '.join(circle)})"
            key = "start_from" if stage.start_from == need else "objectives"
            raise UserError(f"stages.{path[-1]}.{key}: found {found}, expected an earlier stage.")
        refuse_circle(stages, (*path, need))


def known(key: str, name: str, valid: Iterable[str], what: str) -> None:
    """Raise `UserError` for a name that is none of the valid ones."""
    names = list(valid)
    if name not in names:
        raise UserError(f"{key}: found {name!r}, expected {what}: {one_of(name, names)}.")

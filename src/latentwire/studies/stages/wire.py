"""A stage that trains a latent wire in front of frozen readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentwire.errors import UserError
from latentwire.evaluation.gates import EXAMPLES, Gate
from latentwire.runs.log import Log
from latentwire.studies.model_loader import ModelLoader
from latentwire.studies.stages.base import (
    TRAINED,
    Description,
    Stage,
    StageWork,
    StudyContext,
    hashed_wires,
    known,
    naming,
    refuse_circle,
)
from latentwire.studies.stages.training_stage import TrainingStage, reported
from latentwire.training.objectives import Imitate
from latentwire.training.wire.wire_training_config import PRESETS, WireTraining
from latentwire.wires.latent.latent_config import LatentConfig, read_config
from latentwire.wires.latent.latent_wire import BEST, locate


class TrainWire(WireTraining, TrainingStage):
    """The training of a latent wire in front of frozen readers.

    Attributes:
        start_from: An earlier wire stage, whose wire is trained on. The objective `imitate` follows the wire of a
            stage written `stage:NAME`.
        start_wire: Instead, a finished wire: its folder, its run or `embedded:NAME`.
        preset: Sizes for what the stage does not set itself.
        accept: Gates such as `first_token_top1 >= 0.12`. Each must hold for every trained reader, with the whole
            interval, on `accept_examples` validation examples (all of them for a task that has fewer). Examples
            that chose the checkpoint are left out if enough others remain. If a gate does not hold, the stage is
            rejected and nothing starts from it.
        accept_examples: Validation examples on which each gate is judged.
    """

    described: ClassVar[str] = "a wire"
    starts_from: ClassVar[str] = "wire"

    kind: Literal["wire"]
    start_wire: str | None = None
    preset: Literal["smoke", "hero"] | None = None
    accept: tuple[str, ...] = ()
    accept_examples: int = Field(default=EXAMPLES, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _sized_by_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") not in list(PRESETS):
            return values
        return {**PRESETS[values["preset"]], **values}

    @field_validator("accept")
    @classmethod
    def _readable_gates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(Gate.parse(text)) for text in value)
        except UserError as error:
            raise ValueError(str(error).removeprefix("gate: ").rstrip(".")) from error

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start_wire is not None and self.start_from is not None:
            raise ValueError(
                "found both start_from and start_wire, expected one of them: which wire to start from?"
            )
        if self.new_reader is not None and self.start_wire is None and self.start_from is None:
            raise ValueError("new_reader: found no wire to add it to, expected start_from or start_wire")
        if self.ridge is not None and (self.start_wire is not None or self.start_from is not None):
            start = "start_wire" if self.start_from is None else "start_from"
            raise ValueError(
                f"ridge: found it beside {start}, expected one of them: each says where a bridge begins"
            )
        return self

    @property
    def gates(self) -> list[Gate]:
        return [Gate.parse(text) for text in self.accept]

    @property
    def imitations(self) -> list[Imitate]:
        return [objective for objective in self.objectives if isinstance(objective, Imitate)]

    def settings(self, trained: Callable[[str], Path] | None = None) -> WireTraining:
        """What the training itself is configured by.

        Args:
            trained: The folder of the wire that a stage has trained; without it, `stage:NAME` stays as written.
        """
        settings = WireTraining.model_validate(self.model_dump(include=set(WireTraining.model_fields)))
        if trained is None:
            return settings
        objectives = tuple(
            objective.model_copy(update={"wire": str(trained(objective.wire.removeprefix(TRAINED)))})
            if isinstance(objective, Imitate) and objective.wire.startswith(TRAINED)
            else objective
            for objective in settings.objectives
        )
        return settings.model_copy(update={"objectives": objectives})

    @property
    def trained_wire(self) -> LatentConfig | None:
        return self.wire

    def needs(self) -> list[str]:
        imitated = [each.wire for each in self.imitations if each.wire.startswith(TRAINED)]
        return list(dict.fromkeys([*super().needs(), *(wire.removeprefix(TRAINED) for wire in imitated)]))

    def loads(self) -> list[str]:
        """The encoder's model and the readers that learn."""
        return list(dict.fromkeys([self.wire.source, *self.readers]))

    def finished_wires(self) -> list[str]:
        return [*([self.start_wire] if self.start_wire else []), *self.imitated_wires()]

    def imitated_wires(self) -> list[str]:
        """The finished wires that it imitates and that no stage of the study trains."""
        return [each.finished for each in self.imitations if each.finished is not None]

    def beginning(self, study_model: str) -> str:
        return self.start_from or self.start_wire or ", ".join(self.loads())

    def check_references(self, name: str, stages: Mapping[str, Stage], model: str) -> None:
        super().check_references(name, stages, model)
        start = stages[self.start_from].trained_wire if self.start_from is not None else None
        if start is not None and self.new_reader is not None:
            self._check_extends(name, start)
        for at, objective in enumerate(self.objectives):
            if isinstance(objective, Imitate) and objective.wire.startswith(TRAINED):
                self._check_imitated(f"stages.{name}.objectives.{at}.wire", name, objective, stages)

    def _check_extends(self, name: str, start: LatentConfig) -> None:
        """Refuse a new reader for a wire that is not the one that the earlier stage trains."""
        new, key = self.new_reader, f"stages.{name}"
        if new in start.adapters:
            raise UserError(f"{key}.new_reader: found {new!r}, expected one that {self.start_from} has not.")
        rest = {reader: each for reader, each in self.wire.adapters.items() if reader != new}
        if self.wire.model_copy(update={"adapters": rest}) != start:
            raise UserError(
                f"{key}.wire: found another wire than that of {self.start_from}, expected the same with "
                f"{new} as one reader more."
            )

    def _check_imitated(self, key: str, name: str, objective: Imitate, stages: Mapping[str, Stage]) -> None:
        """Refuse an imitation of a stage that trains no wire, or of a wire that its readers cannot read."""
        wires = {other: wire for other, stage in stages.items() if (wire := stage.trained_wire) is not None}
        imitated = objective.wire.removeprefix(TRAINED)
        known(key, imitated, wires, "a wire stage")
        refuse_circle(stages, (name,))
        readable = wires[imitated].adapters
        for reader in [objective.reader] if objective.reader else self.readers:
            if reader not in readable:
                own = ", ".join(readable)
                raise UserError(f"{key}: found a wire that {reader} cannot read, expected one of its own: {own}.")

    def describe(self, context: StudyContext) -> Description:
        loaded = self.loads()
        files, data = self.hashed_data()
        # The wire it starts from has the same source as its own; the wires it imitates need not.
        sources = [read_config(locate(path)).source for path in self.imitated_wires()]
        return Description(
            weights={f"model {name}" if at else "model": context.weights[name] for at, name in enumerate(loaded)},
            data=data,
            files=files,
            wires=hashed_wires(self.finished_wires()),
            computed_by=[*loaded, *sources],
        )

    @classmethod
    def check_all(cls, stages: Mapping[str, Self], context: StudyContext, models: ModelLoader) -> None:
        from latentwire.training.wire import accept, train

        for name, stage in stages.items():
            with naming(name):
                loaded = models.together(stage.loads(), stage.frozen_dtype)
                models.prepare_wires(loaded, stage.readers, stage.imitated_wires())
                start = locate(stage.start_wire) if stage.start_wire else None
                readers = {reader: loaded[reader] for reader in stage.readers}
                train.check(readers, loaded[stage.wire.source], stage.settings(), start)
                if stage.accept:
                    accept.check(stage.data, stage.gates, stage.accept_examples)

    def run(self, work: StageWork) -> dict[str, Any]:
        """Train the wire and judge it by its gates; see `train_wire` and `training.wire.accept`."""
        models, folder, log = work.models, work.folder, work.log
        try:
            results = self._train(models, folder, log)
        except BaseException:
            models.drop()  # nobody knows what it has left in them
            raise
        models.tidy()
        return results

    def _train(self, models: ModelLoader, folder: Path, log: Log) -> dict[str, Any]:
        from latentwire.training.wire import accept
        from latentwire.training.wire.train import train_wire

        loaded, settings = models.together(self.loads(), self.frozen_dtype), self.settings(models.wire)
        imitated = (each.finished for each in settings.objectives if isinstance(each, Imitate))
        models.prepare_wires(loaded, self.readers, [path for path in imitated if path is not None])
        readers, source = {name: loaded[name] for name in self.readers}, loaded[self.wire.source]
        with log.progress(folder.parent.name, "steps") as progress:
            trained = train_wire(
                readers, source, settings, folder, start=self._start(models), log=log, progress=progress
            )
        results = reported(trained, log)
        if self.accept:
            judged = accept.judge(folder / BEST, readers, self, self.gates, self.accept_examples, folder, log)
            results["accept"] = judged
        return results

    def _start(self, models: ModelLoader) -> Path | None:
        if self.start_wire is not None:
            return locate(self.start_wire)
        return models.wire(self.start_from, self.checkpoint) if self.start_from else None

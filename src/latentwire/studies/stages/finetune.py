"""A stage that finetunes the study's model over one wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator

from latentwire.studies.model_loader import ModelLoader
from latentwire.studies.stages.base import Description, Stage, StageWork, StudyContext, naming, trained_source
from latentwire.studies.stages.study_arms import wire_label
from latentwire.studies.stages.training_stage import TrainingStage, reported
from latentwire.training.finetuning.finetuning_config import Finetuning


class Finetune(Finetuning, TrainingStage):
    """A finetuning of the study's model over one wire, on packed rows."""

    described: ClassVar[str] = "a finetuning"
    changes_model: ClassVar[bool] = True

    kind: Literal["finetune"]

    @field_validator("wire")
    @classmethod
    def _known_wire(cls, value: str) -> str:
        return wire_label(value)

    def settings(self) -> Finetuning:
        """What the training itself is configured by."""
        return Finetuning.model_validate(self.model_dump(exclude=set(Stage.model_fields)))

    def data_seen(self, results: Mapping[str, Any]) -> tuple[Any, ...] | None:
        seen = results["train_rows_sha256"], results["steps"]
        return (*seen, self.rows, self.row_tokens, self.steps, self.seed)

    def describe(self, context: StudyContext) -> Description:
        files, data = self.hashed_data()
        models = {} if self.start_from else {"model": context.weights[context.model]}
        return Description(weights=models, data=data, files=files, computed_by=[context.model])

    @classmethod
    def check_all(cls, stages: Mapping[str, Self], context: StudyContext, models: ModelLoader) -> None:
        from latentwire.training.finetuning import checks

        # The model as it is: finetuning changes weights only, so what fits it fits every checkpoint of it.
        lm = models.load((context.model, None, "best"))
        for name, stage in stages.items():
            with naming(name):
                checks.check(stage.settings(), lm)

    def run(self, work: StageWork) -> dict[str, Any]:
        """Train in place; see `training.finetuning.finetune.finetune` for what is written and raised."""
        from latentwire.training.finetuning import finetune

        try:
            lm = work.models.load(trained_source(self, work.context), to_train=True)
            with work.log.progress(work.folder.parent.name, "steps") as progress:
                trained = finetune.finetune(lm, self.settings(), work.folder, log=work.log, progress=progress)
            return reported(trained, work.log)
        finally:
            work.models.drop()  # the weights in memory are no longer those on disk

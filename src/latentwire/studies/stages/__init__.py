"""The stages of a study. Each kind is one class in one file: what it needs, checks, runs and reports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from latentwire.studies.stages.base import Stage as Stage
from latentwire.studies.stages.evaluate import Evaluate
from latentwire.studies.stages.finetune import Finetune
from latentwire.studies.stages.wire import TrainWire

AnyStage = Annotated[Evaluate | Finetune | TrainWire, Field(discriminator="kind")]
"""A stage as a study's YAML writes it; its key `kind` picks the class."""
KINDS: tuple[type[Stage], ...] = (TrainWire, Finetune, Evaluate)
"""In the order in which their checks run: finetunings and evaluations share the model that is loaded last."""

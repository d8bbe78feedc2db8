"""A study as its YAML file says it: tasks, stages, and what to report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from latentwire.errors import one_of
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.studies.claims import Comparison, Effects, Gate
from latentwire.studies.stages import Evaluate, FitWire, Name, Stage
from latentwire.tasks import DATA_KINDS
from latentwire.tasks.base import Split
from latentwire.training.settings import Settings
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import locate

ORACLES = "oracles"
"""In a comparison an oracle is written `oracles/NAME`, as if this were its stage."""
Readings = Annotated[tuple[str, ...], Field(min_length=2)]


class FileTask(Settings):
    """A task read from a file of one's own or from a benchmark's official files, under any name."""

    name: Name
    kind: str
    data: Path

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if value not in DATA_KINDS:
            raise ValueError(f"found {value!r}, expected {one_of(value, DATA_KINDS)}")
        return value


TaskEntry = Annotated[
    Annotated[str, Tag("named")] | Annotated[FileTask, Tag("file")],
    Discriminator(lambda entry: "file" if isinstance(entry, dict | FileTask) else "named"),
]
"""A task of the project or of lm-eval by its name, or one read from a file."""


class Loading(Settings):
    """How a model is loaded that is not finetuned.

    device_map: where each module goes, as Transformers takes it (`auto`, or a device by module). bits: round the
    weights to 4 bits (NF4, by bitsandbytes, on a GPU); what else there is stays bfloat16.
    """

    device_map: str | dict[str, int | str] | None = None
    bits: Literal[4] | None = None


class Study(Settings):
    """A whole study.

    limit: the first so many examples of each task. dtype: what evaluations read in (without it float32 on a
    CPU, bfloat16 on an accelerator); finetuning keeps float32 weights in any case. loading: by model.
    prompts: by model, how it is asked in training and in evaluation; without an entry as its own files say.
    oracles: by name, readings (STAGE/ARM) of which the best counts, example by example: what could be had of them
    together by one who knew whom to believe.
    """

    name: Name
    model: str
    seed: int = 0
    tasks: tuple[TaskEntry, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    split: Split = "test"
    dtype: Literal["float32", "bfloat16"] | None = None
    loading: dict[str, Loading] = Field(default_factory=dict)
    prompts: dict[str, PromptSettings] = Field(default_factory=dict)
    stages: dict[Name, Stage] = Field(min_length=1)
    effects: Effects | None = None
    oracles: dict[Name, Readings] = Field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    gates: tuple[Gate, ...] = ()

    def models(self) -> list[str]:
        """Every model that a stage reads with or that writes for a relay."""
        found = [self.model]
        for stage in self.stages.values():
            if isinstance(stage, FitWire):
                found += stage.models()
            elif isinstance(stage, Evaluate):
                found += ([stage.model] if stage.model else []) + stage.relays()
        return list(dict.fromkeys(found))

    def sources(self) -> list[str]:
        """The encoders' models of trained wires that no stage trains. Raises `UserError` if one is not there."""
        paths = [path for stage in self.stages.values() for path in stage.elsewhere()]
        return list(dict.fromkeys(read_config(locate(path)).source for path in paths))

    def parts(self, reading: str) -> tuple[str, ...]:
        """The readings STAGE/ARM that a reading is made of: itself, or those of an oracle."""
        stage, _, name = reading.partition("/")
        return self.oracles[name] if stage == ORACLES else (reading,)

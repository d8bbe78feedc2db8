"""A study as its YAML file says it: tasks, stages, and what to report."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, Tag, field_validator

from latentwire.errors import one_of
from latentwire.lm.decoding import DecodingSettings
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.publishing.publish_settings import PublishSettings
from latentwire.runs.store import StudyFile
from latentwire.studies.claims import Condition, Effects, StudyComparison
from latentwire.studies.stages import AnyStage
from latentwire.studies.stages.base import Name, seed_stage
from latentwire.tasks import DATA_KINDS
from latentwire.tasks.base import Split
from latentwire.tasks.row_task import MAX_UNUSABLE
from latentwire.training.settings import Settings, fastest
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import locate

ORACLES = "oracles"
"""A comparison names an oracle `oracles/NAME`, as if this were its stage."""
Readings = Annotated[tuple[str, ...], Field(min_length=2)]


class FileTask(Settings):
    """A task read from your own file or from a benchmark's official files, under any name.

    Attributes:
        name: What the task is called in every table.
        kind: The format of the file, or the benchmark whose official files are read.
        data: The file, or the folder that holds one file of that format.
        fields: for kind `file`, the column that holds what is called otherwise than expected.
        max_unusable: for kind `file`, the share of rows up to which unusable ones are skipped.
        limit: Use the first `limit` examples, where that is fewer than the study's.
        instruction: The line that says how to answer, in place of the model's; "" for none.
    """

    name: Name
    kind: str
    data: Path
    fields: dict[str, str] = Field(default_factory=dict)
    max_unusable: float = Field(default=MAX_UNUSABLE, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    instruction: str | None = None

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if value not in DATA_KINDS:
            raise ValueError(f"found {value!r}, expected {one_of(value, DATA_KINDS)}")
        return value


class HubTask(Settings):
    """A dataset of the hub as a task, under any name; see `tasks.hub`.

    Attributes:
        name: What the task is called in every table.
        dataset: its id, a short name such as `squad`, or a local folder that `datasets` can read.
        config: its configuration, where it has several.
        split: which of its splits; slices such as `validation[:500]` work.
        revision: a branch, tag or commit.
        fields: for what is called otherwise than expected, the column that holds it.
        max_unusable: the share of rows up to which unusable ones are skipped.
        limit: Use the first `limit` examples, where that is fewer than the study's.
        instruction: The line that says how to answer, in place of the model's; "" for none.
    """

    name: Name
    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    max_unusable: float = Field(default=MAX_UNUSABLE, ge=0, lt=1)
    limit: int | None = Field(default=None, ge=1)
    instruction: str | None = None


def _entry(entry: object) -> str:
    if isinstance(entry, str):
        return "named"
    kind = entry.get("kind") if isinstance(entry, dict) else getattr(entry, "kind", None)
    return "hub" if kind == "hub" else "file" if isinstance(entry, dict | FileTask) else "named"


TaskEntry = Annotated[
    Annotated[str, Tag("named")] | Annotated[FileTask, Tag("file")] | Annotated[HubTask, Tag("hub")],
    Discriminator(_entry),
]
"""A task of the project or of lm-eval by its name, one read from a file, or a dataset of the hub."""


class Study(Settings):
    """A whole study.

    Attributes:
        name: What the study is called; its runs are in a folder of that name.
        model: The model that stages start from: `embedded:heron`, a hub id, a folder or a `.gguf` file.
        seed: The seed of every training that sets none itself.
        seeds: Several seeds: every training, and every evaluation that needs one, is carried out with each, and
            comparisons, effects and gates are over all of them. `fit` becomes the stages fit-seed0, fit-seed1, ...
        tasks: What evaluations answer.
        limit: Use the first `limit` examples of each task.
        split: The split that evaluations answer.
        dtype: What evaluations read in (if not given, float32 on a CPU and bfloat16 on an accelerator; `fastest`:
            what this machine computes faster); finetuning keeps float32 weights in any case.
        loading: How each model is loaded, by its name. Its dtype wins over the study's, and a training holds that
            model in it while it is frozen.
        prompts: How each model is asked, in training and in evaluation; others are asked as their own files say.
        decoding: By task, how its answers are generated, where that is not as the task says.
        stages: By name, what is done: evaluations, finetunings and trainings of wires.
        effects: Which effects to derive from the readings: damage, gain, recovery and the like.
        comparisons: The paired differences to report.
        gates: Bounds on effects; if one does not hold, the study ends with exit status 1.
        trackers: Who else is told of losses, metrics and samples once they are on disk: `tensorboard`, `wandb`,
            `trackio`, or a `GeneralTracker` of Accelerate by its path.
        oracles: By name, readings (STAGE/ARM) of which the best counts, example by example: an upper bound for
            anyone who would choose between them.
        publish: Where on the hub to publish what stages train; None publishes nothing.
    """

    name: Name
    model: str
    seed: int = 0
    seeds: tuple[int, ...] = ()
    tasks: tuple[TaskEntry, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    split: Split = "test"
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        BeforeValidator(
            fastest("bfloat16", "float32"), json_schema_input_type=Literal["float32", "bfloat16", "fastest"] | None
        ),
    ] = None
    loading: dict[str, Loading] = Field(default_factory=dict)
    prompts: dict[str, PromptSettings] = Field(default_factory=dict)
    decoding: dict[str, DecodingSettings] = Field(default_factory=dict)
    stages: dict[Name, AnyStage] = Field(min_length=1)
    effects: Effects | None = None
    oracles: dict[Name, Readings] = Field(default_factory=dict)
    comparisons: tuple[StudyComparison, ...] = ()
    gates: tuple[Condition, ...] = ()
    trackers: tuple[str, ...] = ()
    publish: PublishSettings | None = None
    _file: StudyFile | None = PrivateAttr(None)

    @property
    def file(self) -> StudyFile | None:
        """The file that it was read from, as it was; None for a study made in Python."""
        return self._file

    def read_from(self, file: StudyFile) -> Study:
        """The same study, which knows its file."""
        made = self.model_copy()
        made._file = file
        return made

    def models(self) -> list[str]:
        """Every model that a stage loads."""
        loaded = chain.from_iterable(stage.loads() for stage in self.stages.values())
        return list(dict.fromkeys([self.model, *loaded]))

    def sources(self) -> list[str]:
        """The encoders' models of finished wires. Raises `UserError` if such a wire does not exist."""
        paths = chain.from_iterable(stage.finished_wires() for stage in self.stages.values())
        return list(dict.fromkeys(read_config(locate(path)).source for path in paths))

    def replicas(self, stage: str) -> dict[str, str]:
        """By seed, the stages that a stage's name stands for: itself under "", or one for each of `seeds`."""
        if stage in self.stages or stage == ORACLES:
            return {"": stage}
        found = {str(seed): seed_stage(stage, seed) for seed in self.seeds}
        return found if found and set(found.values()) <= self.stages.keys() else {}

    def pooled_stages(self) -> list[str]:
        """The names that stand for a stage of each seed, in order."""
        first = f"-seed{self.seeds[0]}" if self.seeds else None
        bases = [name.removesuffix(first) for name in self.stages if first and name.endswith(first)]
        return [name for name in bases if name not in self.stages and self.replicas(name)]

    def parts(self, reading: str) -> tuple[str, ...]:
        """The readings STAGE/ARM that a reading is made of: itself, those of an oracle, or those of its seeds."""
        stage, _, name = reading.partition("/")
        if stage == ORACLES:
            return self.oracles[name]
        return tuple(f"{each}/{name}" for each in self.replicas(stage).values())

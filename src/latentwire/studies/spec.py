"""A study as its YAML file says it: stages, what each starts from, and what to report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from latentwire.errors import UserError, one_of
from latentwire.evaluation import arms
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.gates import EXAMPLES
from latentwire.evaluation.gates import Gate as AcceptanceGate
from latentwire.tasks import DATA_KINDS
from latentwire.tasks.base import Split
from latentwire.training.config import Finetuning, Settings
from latentwire.training.fit.config import PRESETS, Fit
from latentwire.training.fit.objectives import Imitate
from latentwire.wires import CONTROLS
from latentwire.wires.latent.wire import Latent
from latentwire.wires.relay import Relay

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Stages, arms and studies are named so that a folder can be."""
Effect = Literal["damage", "retention", "gain", "recovery", "recovery_of_plain", "side_effect", "interaction"]


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


Checkpoint = Literal["best", "final"]
Source = tuple[str, str | None, Checkpoint]
"""A model, and the finetuning of it whose checkpoint is read; None for the model as it is."""
ORACLES = "oracles"
"""In a comparison an oracle is written `oracles/NAME`, as if this were its stage."""
TRAINED = "stage:"
"""A wire that an earlier stage trained is written `stage:NAME`, a control of it `stage:NAME:VARIANT`."""


class Start(Settings):
    """Which weights a stage starts from.

    start_from: a finetuning's; the study's model if there is none. checkpoint: the finetuning's weights of
    the lowest evaluation loss, or those of its last step. Only `final` compares two finetunings after the
    same number of steps; the best weights of one that makes nothing better are the untrained ones.
    """

    start_from: str | None = None
    checkpoint: Checkpoint = "best"

    @model_validator(mode="after")
    def _checkpoint_of_a_finetuning(self) -> Self:
        if self.start_from is None and self.checkpoint != "best":
            raise ValueError(f"checkpoint: found {self.checkpoint!r} without start_from, whose checkpoint it is")
        return self


class Evaluate(Start):
    """Score tasks over one or several arms, each a wire by name; all arms answer the same examples.

    model: who reads; the study's model unless given. begin_suppress_tokens: tokens, as text, with which no
    generated answer may begin; `first_token_top1` and `first_token_top5` rank the others.
    """

    kind: Literal["evaluate"]
    model: str | None = None
    arms: dict[Name, str] = Field(min_length=1)
    begin_suppress_tokens: tuple[str, ...] = ()

    @field_validator("arms")
    @classmethod
    def _known_wires(cls, value: dict[str, str]) -> dict[str, str]:
        labels: dict[str, str] = {}
        for arm, text in value.items():
            label = _trained(text, arm) if text.startswith(TRAINED) else _wire(text, arm)
            if label in labels.values():
                raise ValueError(f"{arm}: found the wire {label!r} a second time, expected every arm's wire once")
            labels[arm] = label
        return labels

    @model_validator(mode="after")
    def _one_reader(self) -> Self:
        if self.model is not None and self.start_from is not None:
            raise ValueError("found both model and start_from, expected one of them: whose weights read?")
        return self

    def read(self, trained: Callable[[str], Path] | None = None) -> list[Arm]:
        """The arms, parsed.

        Args:
            trained: where the wire of a stage lies. Before it is trained, plain text stands in for it: what is
                wrong with examples, or with a variant of them, shows there too.
        """
        found = []
        for text in self.arms.values():
            if not text.startswith(TRAINED):
                found.append(arms.parse(text))
                continue
            stage, _, variant = text.removeprefix(TRAINED).partition(":")
            if trained is not None:
                found.append(_over(trained(stage), variant))
            elif variant not in CONTROLS:
                found.append(arms.parse(f"text:{variant}".rstrip(":")))
        return found

    def relays(self) -> list[str]:
        """The models that write for its relays."""
        wires = (arm.wire for arm in self.read())
        return list(dict.fromkeys(wire.source for wire in wires if isinstance(wire, Relay)))

    def needs(self) -> list[str]:
        """The stages whose weights or wires it reads with."""
        stages = [
            text.removeprefix(TRAINED).split(":")[0] for text in self.arms.values() if text.startswith(TRAINED)
        ]
        return list(dict.fromkeys([*([self.start_from] if self.start_from else []), *stages]))


class Finetune(Finetuning, Start):
    """A finetuning."""

    kind: Literal["finetune"]

    @field_validator("wire")
    @classmethod
    def _known_wire(cls, value: str) -> str:
        return _wire(value)

    def settings(self) -> Finetuning:
        return Finetuning.model_validate(self.model_dump(exclude={"kind", *Start.model_fields}))

    def needs(self) -> list[str]:
        return [self.start_from] if self.start_from else []


class FitWire(Fit, Start):
    """The training of a latent wire.

    start_from: an earlier one, whose wire is trained on; `imitate` follows that of a stage written `stage:NAME`.
    start_wire: instead, a trained wire from elsewhere (its
    folder, its run or `embedded:NAME`). preset: fills sizes that the stage does not set.
    accept: gates, written `first_token_top1 >= 0.12`, that every trained reader must hold on `accept_examples`
    validation examples (of a task that has fewer, all of them) with the whole interval; those that chose the
    checkpoint are left out where enough others are there. Where one does not, the stage is rejected and nothing
    starts from it.
    """

    kind: Literal["wire"]
    start_wire: str | None = None
    preset: Literal["smoke", "hero"] | None = None
    accept: tuple[str, ...] = ()
    accept_examples: int = Field(default=EXAMPLES, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") not in list(PRESETS):
            return values
        return {**PRESETS[values["preset"]], **values}

    @field_validator("accept")
    @classmethod
    def _gates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(AcceptanceGate.parse(each)) for each in value)
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
    def gates(self) -> list[AcceptanceGate]:
        return [AcceptanceGate.parse(each) for each in self.accept]

    def settings(self, trained: Callable[[str], Path] | None = None) -> Fit:
        """What is trained. trained: where the wire of a stage lies, once it is."""
        made = Fit.model_validate(self.model_dump(include=set(Fit.model_fields)))
        if trained is None:
            return made
        objectives = tuple(
            each.model_copy(update={"wire": str(trained(each.wire.removeprefix(TRAINED)))})
            if isinstance(each, Imitate) and each.wire.startswith(TRAINED)
            else each
            for each in made.objectives
        )
        return made.model_copy(update={"objectives": objectives})

    @property
    def imitations(self) -> list[Imitate]:
        return [each for each in self.objectives if isinstance(each, Imitate)]

    def needs(self) -> list[str]:
        followed = [each.wire for each in self.imitations if each.wire.startswith(TRAINED)]
        stages = [self.start_from] if self.start_from else []
        return list(dict.fromkeys([*stages, *(each.removeprefix(TRAINED) for each in followed)]))

    def models(self) -> list[str]:
        """The encoder's model and the readers that learn."""
        return list(dict.fromkeys([self.wire.source, *self.readers]))


Stage = Annotated[Evaluate | Finetune | FitWire, Field(discriminator="kind")]


class After(Settings):
    """The two readings after a finetuning: with the mask, and plain."""

    ablated: str
    plain: str


class Effects(Settings):
    """What to derive: damage, retention, gain, recovery, side effect, interaction (see `studies.derived`).

    Readings are written STAGE/ARM. after: by the finetuning's stage. none: the arm that reads no context,
    a floor, where a stage has it. retained: readings whose retention is wanted; above the floor it is the gap
    closed between reading nothing and reading the text.
    """

    baseline: str
    ablated: str | None = None
    none: str = "none"
    after: dict[str, After] = Field(default_factory=dict)
    retained: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _after_what(self) -> Self:
        if self.after and self.ablated is None:
            raise ValueError("ablated: found nothing, expected the reading that `after` is compared with")
        return self

    def readings(self) -> Iterator[tuple[str, str]]:
        """Key and STAGE/ARM of every reading."""
        yield "baseline", self.baseline
        if self.ablated is not None:
            yield "ablated", self.ablated
        for name, after in self.after.items():
            yield f"after.{name}.ablated", after.ablated
            yield f"after.{name}.plain", after.plain
        for at, reading in enumerate(self.retained):
            yield f"retained.{at}", reading

    def derived(self) -> Iterator[tuple[Effect, str]]:
        """Every effect with the reading that it is of."""
        if self.ablated is not None:
            yield "damage", self.ablated
            yield "retention", self.ablated
        for after in self.after.values():
            yield "retention", after.ablated
            yield "gain", after.ablated
            yield "recovery", after.ablated
            yield "recovery_of_plain", after.ablated
            yield "side_effect", after.plain
            yield "interaction", after.ablated
        for reading in self.retained:
            yield "retention", reading


class Comparison(Settings):
    """A paired difference a − b, each STAGE/ARM or oracles/NAME. primary: planned, and Holm-corrected together
    with the other primary ones; all others are exploratory. metric: the task's primary one if not named."""

    name: Annotated[str, StringConstraints(min_length=1)]
    task: str = "macro"
    metric: str | None = None
    a: str
    b: str
    primary: bool = False


Readings = Annotated[tuple[str, ...], Field(min_length=2)]


class Gate(Settings):
    """A condition on a derived number, without which the study fails (exit status 1)."""

    name: Annotated[str, StringConstraints(min_length=1)]
    effect: Effect
    of: str
    task: str = "macro"
    above_floor: bool = False
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Gate:
        if (self.at_least is None) == (self.at_most is None):
            found = "neither" if self.at_least is None else "both"
            raise ValueError(f"found {found} of at_least and at_most, expected one of them")
        return self


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

    def parts(self, reading: str) -> tuple[str, ...]:
        """The readings STAGE/ARM that a reading is made of: itself, or those of an oracle."""
        stage, _, name = reading.partition("/")
        return self.oracles[name] if stage == ORACLES else (reading,)


def _trained(text: str, arm: str) -> str:
    """`stage:NAME[:VARIANT]` as it is, its variant checked."""
    stage, colon, variant = text.removeprefix(TRAINED).partition(":")
    valid = (*arms.VARIANTS, *CONTROLS)
    if not stage or (colon and variant not in valid):
        raise ValueError(
            f"{arm}: found {text!r}, expected stage:NAME or stage:NAME:VARIANT, {one_of(variant, valid)}"
        )
    return text


def _over(folder: Path, variant: str) -> Arm:
    """The arm of a trained wire. From its parts: a folder's name may hold what separates them when written."""
    if variant in arms.VARIANTS:
        return Arm(Latent(path=str(folder)), variant)
    return Arm(Latent.model_validate({"path": str(folder), "control": variant or None}))


def _wire(text: Any, where: str = "") -> str:
    """The wire's label. A ValueError, for pydantic to say where."""
    try:
        parsed = arms.parse(text)
        if parsed.reader is not None:
            raise UserError(f"found @{parsed.reader}, expected the stage's `model:` to say who reads.")
        return parsed.label
    except UserError as error:
        problem = str(error).removeprefix("wire: ").rstrip(".")
        raise ValueError(f"{where}: {problem}" if where else problem) from error

"""The stages of a study: an evaluation, a finetuning, the training of a wire; what each starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from latentwire.errors import UserError, one_of
from latentwire.evaluation import arms
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.gates import EXAMPLES, Gate
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.objectives import Imitate
from latentwire.training.objectives.imitation import STAGE
from latentwire.training.settings import Settings
from latentwire.training.wire.config import PRESETS, Fit
from latentwire.wires import CONTROLS
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.relay import Relay

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Stages, arms and studies are named so that a folder can be."""
Checkpoint = Literal["best", "final"]
Source = tuple[str, str | None, Checkpoint]
"""A model, and the finetuning of it whose checkpoint is read; None for the model as it is."""
TRAINED = STAGE
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

    def elsewhere(self) -> list[str]:
        """The trained wires that it reads over and that no stage of the study trains."""
        return [arm.wire.path for arm in self.read() if isinstance(arm.wire, Latent)]

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

    def elsewhere(self) -> list[str]:
        return []

    def settings(self) -> Finetuning:
        return Finetuning.model_validate(self.model_dump(exclude={"kind", *Start.model_fields}))

    def needs(self) -> list[str]:
        return [self.start_from] if self.start_from else []


class FitWire(Fit, Start):
    """The training of a latent wire.

    start_from: an earlier one, whose wire is trained on; `imitate` follows that of a stage written `stage:NAME`.
    start_wire: instead, a trained wire from elsewhere (its folder, its run or `embedded:NAME`). preset: fills
    sizes that the stage does not set.
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
            return tuple(str(Gate.parse(each)) for each in value)
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
        return [Gate.parse(each) for each in self.accept]

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

    def elsewhere(self) -> list[str]:
        """The trained wires that it starts from or imitates and that no stage of the study trains."""
        return [*([self.start_wire] if self.start_wire else []), *self.imitated()]

    def imitated(self) -> list[str]:
        """The trained wires that it imitates and that no stage of the study trains."""
        return [each.finished for each in self.imitations if each.finished is not None]

    def needs(self) -> list[str]:
        followed = [each.wire for each in self.imitations if each.wire.startswith(TRAINED)]
        stages = [self.start_from] if self.start_from else []
        return list(dict.fromkeys([*stages, *(each.removeprefix(TRAINED) for each in followed)]))

    def models(self) -> list[str]:
        """The encoder's model and the readers that learn."""
        return list(dict.fromkeys([self.wire.source, *self.readers]))


Stage = Annotated[Evaluate | Finetune | FitWire, Field(discriminator="kind")]


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

"""The arms of an evaluation as a study writes them: any wire, or one that an earlier stage trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from latentwire.errors import UserError, one_of
from latentwire.evaluation import arms
from latentwire.evaluation.arms import Arm
from latentwire.studies.stages.base import TRAINED
from latentwire.wires import CONTROLS
from latentwire.wires.latent.latent_wire import Latent


@dataclass(frozen=True)
class TrainedArm:
    """`stage:NAME[:VARIANT][@READER]`: the wire of an earlier stage.

    Attributes:
        stage: The stage that trains the wire.
        variant: What is done to the examples, or a control of the message.
        reader: The model that reads; None for the evaluation's own.
    """

    stage: str
    variant: str | None = None
    reader: str | None = None

    @classmethod
    def parse(cls, text: str) -> TrainedArm | None:
        """None for an arm that names no stage.

        Raises:
            ValueError: No stage or no reader is named, or the variant is unknown.
        """
        if not text.startswith(TRAINED):
            return None
        spelling, at, reader = text.removeprefix(TRAINED).partition("@")
        stage, colon, variant = spelling.partition(":")
        valid = (*arms.VARIANTS, *CONTROLS)
        if not stage or (colon and variant not in valid):
            raise ValueError(
                f"found {text!r}, expected stage:NAME or stage:NAME:VARIANT, {one_of(variant, valid)}"
            )
        if at and not reader:
            raise ValueError(f"found {text!r}, expected a model after '@'")
        return cls(stage, variant or None, reader or None)

    def over(self, folder: Path) -> Arm:
        """The arm over the trained wire in a folder, built from parts: a folder's name may contain a colon."""
        variant = next((each for each in arms.VARIANTS if each == self.variant), None)
        control = self.variant if variant is None else None
        return Arm(Latent.model_validate({"path": str(folder), "control": control}), variant, self.reader)

    def stand_in(self) -> Arm | None:
        """The arm over plain text that shows the same mistakes before the wire is trained; None for a control."""
        if self.variant in CONTROLS:
            return None
        return replace(arms.parse(f"text:{self.variant}" if self.variant else "text"), reader=self.reader)


def read_arm(text: str, model: str, trained: Callable[[str], Path] | None) -> Arm | None:
    """One arm of a study.

    Args:
        text: As the study writes it.
        model: The model that reads where the arm names none; named or not, it is the same reader.
        trained: The folder of the wire that a stage has trained. Before that, plain text stands in for the wire:
            whatever is wrong with the examples, or with a variant of them, shows there too.

    Returns:
        The arm; None for a control of a wire that is not trained yet.
    """
    named = TrainedArm.parse(text)
    if named is None:
        arm: Arm | None = arms.parse(text)
    else:
        arm = named.stand_in() if trained is None else named.over(trained(named.stage))
    return replace(arm, reader=None) if arm is not None and arm.reader == model else arm


def reader_of(text: str) -> str | None:
    """The model after an arm's `@`, if any."""
    named = TrainedArm.parse(text)
    return arms.parse(text).reader if named is None else named.reader


def without_reader(text: str) -> str:
    """What arms that differ only in their readers have in common."""
    named = TrainedArm.parse(text)
    if named is None:
        return replace(arms.parse(text), reader=None).label
    return f"{TRAINED}{named.stage}:{named.variant or ''}"


def arm_label(text: str) -> str:
    """An arm in its one canonical spelling. Raises `ValueError`, to which pydantic adds the key."""
    return text if TrainedArm.parse(text) is not None else _parsed(text).label


def wire_label(text: str) -> str:
    """A wire in its one canonical spelling. Raises `ValueError`, to which pydantic adds the key."""
    parsed = _parsed(text)
    if parsed.reader is not None:
        raise ValueError(f"found @{parsed.reader}, expected a wire without a reader: the study's model is trained")
    return parsed.label


def _parsed(text: str) -> Arm:
    try:
        return arms.parse(text)
    except UserError as error:
        raise ValueError(str(error).removeprefix("wire: ").rstrip(".")) from error

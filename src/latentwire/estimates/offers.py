"""Offers of GPUs: price, memory, peak and how much of it is reached."""

from __future__ import annotations

from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentwire.errors import UserError

Case = Literal["optimistic", "base", "pessimistic"]
CASES: tuple[Case, ...] = ("optimistic", "base", "pessimistic")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cases(_Strict):
    """Time relative to the base estimate."""

    optimistic: float = Field(gt=0)
    base: float = Field(default=1.0, gt=0)
    pessimistic: float = Field(gt=0)

    def at(self, case: Case) -> float:
        """The factor of a case."""
        return float(getattr(self, case))


class Efficiency(_Strict):
    """The share of the peak that matrix products reach, by kind of stage."""

    finetune: float = Field(gt=0, le=1)
    wire: float = Field(gt=0, le=1)
    evaluate: float = Field(gt=0, le=1)


class LaunchMs(_Strict):
    """Milliseconds that a layer's kernels take to launch in one pass, by kind of stage.

    Attributes:
        finetune, wire, evaluate: of a pass over many columns.
        decode: of a single step of generation.
        passage: that a host needs for one context of a wire's step.
    """

    finetune: float = Field(ge=0)
    wire: float = Field(ge=0)
    evaluate: float = Field(ge=0)
    decode: float = Field(ge=0)
    passage: float = Field(default=0, ge=0)


class StartMinutes(_Strict):
    """Minutes of a stage before its first step, in a process that goes from stage to stage, by kind of stage.

    The defaults come from one run of four stages (docs/estimates.md); a finetuning compiles its attention kernel.
    """

    finetune: float = Field(default=3.0, ge=0)
    wire: float = Field(default=0.4, ge=0)
    evaluate: float = Field(default=0.1, ge=0)


class Offer(_Strict):
    """One offer.

    Attributes:
        gpu: the card, as `run.json` names the accelerator.
        dollars_per_hour: of the whole machine.
        memory_gib: of one GPU.
        tflops: its peak in 16 bits, 10¹² operations a second.
        bandwidth_tbs: of its memory, 10¹² bytes a second.
        disk_gbs: what the disk writes, 10⁹ bytes a second.
        network_gbs: what arrives when a run moves here, 10⁹ bytes a second.
        setup_minutes: until the machine is rented and installed.
        start_minutes: until the first step of a stage that moves here.
        efficiency, launch_ms: where they are not those of the file.
        speed: with a run: how fast the stage is here, relative to where it runs; None computes it.
    """

    gpu: str
    dollars_per_hour: float = Field(ge=0)
    memory_gib: float = Field(gt=0)
    tflops: float = Field(gt=0)
    bandwidth_tbs: float = Field(gt=0)
    disk_gbs: float = Field(default=1.0, gt=0)
    network_gbs: float = Field(default=0.1, gt=0)
    setup_minutes: float = Field(default=15, ge=0)
    start_minutes: float = Field(default=1.0, ge=0)
    efficiency: Efficiency | None = None
    launch_ms: LaunchMs | None = None
    speed: float | None = Field(default=None, gt=0)


class Offers(_Strict):
    """A file of offers; `checked` is the day on which its prices were looked at."""

    checked: date
    before: Cases
    during: Cases
    efficiency: Efficiency
    launch_ms: LaunchMs
    stage_start: StartMinutes = StartMinutes()
    offers: dict[str, Offer] = Field(min_length=1)

    def efficiency_of(self, offer: Offer) -> Efficiency:
        """An offer's efficiencies."""
        return offer.efficiency or self.efficiency

    def launch_of(self, offer: Offer) -> LaunchMs:
        """An offer's launch times."""
        return offer.launch_ms or self.launch_ms

    def where(self, gpu: str | None) -> str | None:
        """The offer that has this card."""
        return next((name for name, offer in self.offers.items() if offer.gpu == gpu), None)


def read(path: Path | None = None) -> Offers:
    """The offers of a file, or those that ship with the package.

    Raises:
        UserError: it cannot be read, or a field is wrong.
    """
    try:
        text = (files("latentwire.estimates") / "offers.yaml" if path is None else path).read_text(
            encoding="utf-8"
        )
        return Offers.model_validate(yaml.safe_load(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"offers: {path} cannot be read: {str(error).splitlines()[0]}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"offers: {path}: {field}: found {first['input']!r:.60}; {first['msg'].lower()}."
        ) from error

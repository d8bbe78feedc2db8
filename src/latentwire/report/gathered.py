"""Everything that a page says about one study, read from its folder; outcomes are checked against their hashes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.prompts_kept import PROMPTS
from latentwire.evaluation.summarize import by_arm
from latentwire.runs.store import ENDED, OUTCOMES, Run
from latentwire.studies.finished_study import FinishedStudy
from latentwire.studies.shape import Summary


@dataclass(frozen=True)
class ArmReading:
    """One arm as one stage evaluated it.

    Attributes:
        stage, arm: Its names in the study.
        wire: As the study writes it; empty where the summary does not say.
        leaks: Whether scored tokens see themselves.
        outcomes: One for each example.
    """

    stage: str
    arm: str
    wire: str
    leaks: bool
    outcomes: list[Outcome] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.arm}"

    @property
    def blind(self) -> bool:
        """Whether it reads the question alone: a floor, and no way of reading."""
        return self.wire.partition(",")[0].partition("@")[0] == "none" or self.arm == "none"


@dataclass(frozen=True)
class Gathered:
    """A study as the page tells it.

    Attributes:
        study: Its folder, read.
        label: Its name, made different from those of other studies on the page.
        key: What its headings' ids begin with.
    """

    study: FinishedStudy
    label: str
    key: str

    @classmethod
    def read(cls, folder: Path, key: str, taken: Mapping[str, Any] | None = None) -> Gathered:
        """The study in a folder.

        Args:
            key: What its headings' ids begin with.
            taken: Labels that other studies have.

        Raises:
            UserError: as `FinishedStudy.read`.
        """
        study = FinishedStudy.read(folder, PROMPTS)
        name = study.summary["study"]
        label = name
        for at in range(2, 2 + len(taken or {})):
            label = label if label not in (taken or {}) else f"{name} ({at})"
        return cls(study, label, key)

    @property
    def summary(self) -> Summary:
        return self.study.summary

    @property
    def runs(self) -> dict[str, Run]:
        return self.study.runs

    @property
    def derived(self) -> dict[str, Any]:
        return self.summary["derived"]

    @property
    def outline(self) -> dict[str, Any]:
        """What the study asks; of a summary of an older version, no more than its runs tell."""
        found: dict[str, Any] = self.derived.get("outline") or {}
        return found

    def evaluations(self) -> dict[str, Any]:
        """By stage, what its evaluation reports beside the metrics."""
        found: dict[str, Any] = self.derived.get("evaluations", {})
        return found

    @cached_property
    def readings(self) -> dict[str, ArmReading]:
        """By STAGE/ARM every reading of the stages that are done."""
        found = {}
        for stage, run in self.runs.items():
            path = run.folder / OUTCOMES
            if run.status not in ENDED or not path.is_file():
                continue
            wires = self.outline.get("stages", {}).get(stage, {}).get("arms", {})
            leaks = self.evaluations().get(stage, {}).get("leaks", ())
            for arm, outcomes in by_arm(read_outcomes(path)).items():
                reading = ArmReading(stage, arm, wires.get(arm, ""), arm in leaks, outcomes)
                found[reading.name] = reading
        return found

    def floors(self) -> dict[str, dict[str, float]]:
        """By task the floors that are numbers (`chance`, `type_floor`), the same in every stage."""
        found: dict[str, dict[str, float]] = {}
        for each in self.evaluations().values():
            found |= each.get("floors", {})
        return found

    def prompts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every kept example with what its arms' readers got, by stage."""
        for stage, run in self.runs.items():
            path = run.folder / PROMPTS
            if run.status in ENDED and path.is_file():
                with path.open(encoding="utf-8", newline="\n") as file:
                    for line in file:
                        yield stage, json.loads(line)

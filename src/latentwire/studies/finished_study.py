"""A study's folder, read again: its summary and the runs that it is made of, checked against their hashes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.runs.store import ENDED, METRICS, OUTCOMES, RECORD, Run
from latentwire.studies import training_curves
from latentwire.studies.shape import Summary


@dataclass(frozen=True)
class FinishedStudy:
    """What a study left in its folder.

    Attributes:
        folder: Where its `summary.json` is.
        summary: What that says.
        runs: By stage the run that counts, as far as it is still there.
    """

    folder: Path
    summary: Summary
    runs: dict[str, Run]

    @classmethod
    def read(cls, folder: Path, *checked: str) -> FinishedStudy:
        """The study in a folder.

        Args:
            folder: Where its `summary.json` is.
            checked: Further files of its runs that will be read and must have their recorded hashes.

        Raises:
            UserError: There is no summary, or it is not made of its runs' results, or these have changed.
        """
        summary = _summary(folder)
        runs = {}
        for name, stage in summary["stages"].items():
            # A run is written STUDY/STAGE/RUN; the study's folder may have been renamed since.
            place = folder.joinpath(*Path(stage["run"] or "").parts[1:])
            if stage["run"] is None or not (place / RECORD).is_file():
                continue
            run = Run.read(place)
            run.check_results(OUTCOMES, METRICS, training_curves.FILE, *checked)
            if run.status in ENDED and run.metrics() != stage["metrics"]:
                raise UserError(
                    f"report: found other numbers for {name} in {folder / 'summary.json'} than in "
                    f"{place / METRICS}, expected the same; delete summary.json and run the study again."
                )
            runs[name] = run
        return cls(folder, summary, runs)


def _summary(folder: Path) -> Summary:
    try:
        found: Summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"report: found no summary.json to read in {folder}, expected a study's folder."
        ) from error
    wanted = list(Summary.__annotations__)
    if not isinstance(found, dict) or not all(key in found for key in wanted):
        raise UserError(
            f"report: found another summary.json than a study's in {folder}, expected {', '.join(wanted)}."
        )
    return found

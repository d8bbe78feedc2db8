"""What `latentwire report` draws: how well latents are read against their size, and how trainings went."""

from __future__ import annotations

import json
from pathlib import Path

from latentwire.errors import UserError
from latentwire.runs.store import ENDED, METRICS, OUTCOMES, RECORD, Run
from latentwire.studies import curves, drawing, training_curves
from latentwire.studies.shape import Summary


def draw(folder: Path, out: Path) -> list[Path]:
    """Draw a study whose `summary.json` is in a folder.

    Args:
        folder: The study's folder.
        out: Where to draw, such as `curves.svg` or `curves.png`; `-bytes`, `-facts` and `-training` are put before
            the ending.

    Returns:
        The files written: the first two for arms over latents, the last for trainings.

    Raises:
        UserError: There is no summary, it holds neither of these, it differs from its runs, matplotlib is not
            installed, or nothing can be written.
    """
    summary = _read(folder)
    _check_runs(folder, summary)
    drawing.check(out)  # before the first of several is written
    written = curves.draw(summary, out)
    if trained := training_curves.trainings(folder, summary):
        place = out.with_name(f"{out.stem}-training{out.suffix}")
        training_curves.draw(trained, place, summary["study"])
        written.append(place)
    if not written:
        raise UserError(
            f"report: {folder} holds no evaluation over latents and no training, expected one that is done."
        )
    return written


def _check_runs(folder: Path, found: Summary) -> None:
    """Refuse a summary that is not made of its runs' results, where those runs are in the folder."""
    for name, stage in found["stages"].items():
        # A run is written STUDY/STAGE/RUN; the study's folder may have been renamed since.
        place = folder.joinpath(*Path(stage["run"] or "").parts[1:])
        if stage["run"] is None or not (place / RECORD).is_file():
            continue
        run = Run.read(place)
        run.check_results(OUTCOMES, METRICS, training_curves.FILE)
        if run.status in ENDED and run.metrics() != stage["metrics"]:
            raise UserError(
                f"report: found other numbers for {name} in {folder / 'summary.json'} than in {place / METRICS}, "
                "expected the same; delete summary.json and run the study again."
            )


def _read(folder: Path) -> Summary:
    try:
        summary: Summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"report: found no summary.json to read in {folder}, expected a study's folder."
        ) from error
    wanted = list(Summary.__annotations__)
    if not isinstance(summary, dict) or not all(key in summary for key in wanted):
        raise UserError(
            f"report: found another summary.json than a study's in {folder}, expected {', '.join(wanted)}."
        )
    return summary

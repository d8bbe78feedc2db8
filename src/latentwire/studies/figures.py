"""What `latentwire report -o FILE.svg` draws: how well latents are read for their size, and how trainings went."""

from __future__ import annotations

from pathlib import Path

from latentwire.errors import UserError
from latentwire.studies import curves, drawing, training_curves
from latentwire.studies.finished_study import FinishedStudy


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
    summary = FinishedStudy.read(folder).summary
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

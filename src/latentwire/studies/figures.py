"""What `latentwire report` draws of a study: curves of what is read over latents, and how its trainings went."""

from __future__ import annotations

import json
from pathlib import Path

from latentwire.errors import UserError
from latentwire.studies import curves, drawing, training_curves
from latentwire.studies.shape import Summary


def draw(folder: Path, out: Path) -> list[Path]:
    """Draw a study whose `summary.json` lies in a folder.

    Args:
        out: where to, such as `curves.svg` or `curves.png`; `-bytes`, `-facts` and `-training` are put before the
            ending.

    Returns:
        What was written: the first two for arms over latents, the last for trainings.

    Raises:
        UserError: no summary, neither of these in it, matplotlib is not installed, or nothing can be written.
    """
    found = _read(folder)
    drawing.check(out)  # before the first of several is written
    written = curves.draw(found, out)
    if trained := training_curves.trainings(folder, found):
        place = out.with_name(f"{out.stem}-training{out.suffix}")
        training_curves.draw(trained, place, found["study"])
        written.append(place)
    if not written:
        raise UserError(
            f"report: {folder} holds no evaluation over latents and no training, expected one that is done."
        )
    return written


def _read(folder: Path) -> Summary:
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

"""What all figures of a study share: their size, and how they are written to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentwire.errors import UserError


def check(out: Path) -> None:
    """Refuse a path that no figure can be written to. Raises `UserError`."""
    if out.suffix not in (".svg", ".png") or not out.parent.is_dir():
        raise UserError(f"report: {out} cannot be written, expected a path in a folder, ending in .svg or .png.")


def figure(width: float, height: float) -> Any:
    """An empty figure, width and height in inches. Raises `UserError` if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "report: found no matplotlib, expected it installed: pip install latentwire[plots]."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def write(made: Any, place: Path) -> None:
    """Write a figure; the same figure always gives the same bytes. Raises `UserError`."""
    from matplotlib import rc_context

    # Text stays text, and ids are not random: the same study gives the same file.
    fixed = {"Date": None} if place.suffix == ".svg" else None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "latentwire"}):
        try:
            # Tight, because a legend may be wider than one panel.
            made.savefig(place, dpi=80, metadata=fixed, bbox_inches="tight")
        except (OSError, ValueError) as error:
            raise UserError(
                f"report: {place} cannot be written ({error}), expected a path ending in .svg or .png."
            ) from error

"""The page: one HTML file that opens from disk, with its styles, scripts, charts and data inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.files import check_writable, write_atomically
from latentwire.report import wording
from latentwire.report.across_studies import across
from latentwire.report.charts_data import charts
from latentwire.report.comparison_rows import comparison_rows
from latentwire.report.effect_rows import effect_rows
from latentwire.report.embedding import embedded
from latentwire.report.findings import findings
from latentwire.report.gathered import Gathered
from latentwire.report.plain_words import evidence
from latentwire.report.sample_data import sample_data
from latentwire.report.score_rows import score_table
from latentwire.report.stage_diagram import HEIGHT, WIDTH, diagram
from latentwire.version import __version__

MOST_BYTES = 4_900_000
"""The page's size at most: a mail takes it, and a browser opens it at once."""
_NOTE = 1_000
"""Room for what the page says about samples that were left out."""
NAME = "report.html"
SCRIPTS = ("plot.min.js", "charts.js", "prompt_drawing.js", "sample_browser.js")


def write(folders: Sequence[Path], out: Path | None = None, *, most_bytes: int = MOST_BYTES) -> Path:
    """Write the report of one study or several.

    Args:
        folders: The studies' folders, where their `summary.json` is.
        out: The file to write; by default `report.html` in the first study's folder.
        most_bytes: The page's size at most; samples are left out until it fits.

    Returns:
        The file written.

    Raises:
        UserError: A folder is no study's, its files have changed since its runs ended, or nothing can be written.
    """
    place = out or folders[0] / NAME
    if place.suffix not in (".html", ".htm"):
        raise UserError(
            f"out: found {place.name}, expected a name that ends in .html, or in .svg or .png for curves."
        )
    studies: dict[str, Gathered] = {}
    for at, folder in enumerate(folders):
        study = Gathered.read(folder, f"s{at + 1}", studies)
        studies[study.label] = study
    check_writable(place, "out")
    write_atomically(place, page(list(studies.values()), most_bytes))
    return place


def page(studies: Sequence[Gathered], most_bytes: int = MOST_BYTES) -> str:
    """The page of studies that have been read."""
    told = [_told(study, at) for at, study in enumerate(studies)]
    data: dict[str, Any] = {"studies": [{"label": each["label"], **each.pop("charts")} for each in told]}
    rest = len(_render(studies, told, {**data, "samples": {}}).encode())
    data["samples"] = sample_data(studies, max(0, most_bytes - rest - _NOTE))
    return _render(studies, told, data)


def _told(study: Gathered, at: int) -> dict[str, Any]:
    scores = score_table(study)
    effects = effect_rows(study)
    drawn = charts(study, scores, effects)
    return {
        "at": at,
        "key": study.key,
        "label": study.label,
        "study": study,
        "outline": study.outline,
        "evidence": evidence(study),
        "diagram": diagram(study),
        "scores": scores,
        "comparisons": comparison_rows(study),
        "effects": effects,
        "findings": findings(study),
        "runs": study.runs,
        "sizes": drawn["sizes"],
        "trainings": drawn["trainings"],
        "charts_bars": bool(drawn["bars"]),
        "charts": drawn,
    }


def _render(studies: Sequence[Gathered], told: Sequence[dict[str, Any]], data: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("latentwire.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": wording.plain,
        "signed": wording.signed,
        "estimated": wording.estimated,
        "duration": wording.duration,
    }
    environment.globals |= {"interval": wording.interval, "box_width": WIDTH, "box_height": HEIGHT}
    scripts = [asset(name) for name in SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    return environment.get_template("page.html").render(
        title=wording.listed([study.label for study in studies]),
        studies=told,
        several=len(studies) > 1,
        across=across(studies) if len(studies) > 1 else [],
        sampled=data["samples"].get("sampled"),
        data=embedded(data),
        style=asset("report.css"),
        scripts=scripts,
        script_hashes=hashes,
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def asset(name: str) -> str:
    """The text of a style or script that goes into the page."""
    return (resources.files("latentwire.report") / "assets" / name).read_text("utf-8")

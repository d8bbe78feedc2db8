"""Plots of how cost grows, from the rows that `--json` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.files import write_atomically

Axis = tuple[str, tuple[str, ...]]
AXES: dict[str, tuple[str, dict[str, Axis]]] = {
    "train": (
        "tokens_per_second",
        {"tokens": ("batch", ("billions", "documents")), "billions": ("size", ("batch",))},
    ),
    "decode": (
        "ms_per_step",
        {
            "batch": ("batch", ("billions", "layers", "prompt")),
            "prompt": ("length", ("billions", "layers", "batch")),
            "billions": ("size", ("batch", "prompt")),
        },
    ),
    "score": ("documents_per_second", {"context": ("length", ("task",))}),
    "loss": ("seconds", {"tokens": ("batch", ())}),
}
"""By benchmark: what is drawn, and over which entries of `BenchRow.at`, with the name of each picture and the
entries that stay the same along a line."""
LABELS = {
    "tokens_per_second": "real tokens a second",
    "ms_per_step": "milliseconds a step",
    "documents_per_second": "documents a second",
    "seconds": "seconds",
    "tokens": "tokens a step",
    "billions": "billions of parameters",
    "batch": "rows",
    "prompt": "tokens of prompt",
    "context": "tokens of context",
}
Line = tuple[list[float], list[float]]


def draw(files: Sequence[Path], folder: Path) -> list[Path]:
    """Write one SVG, `BENCHMARK_by_PLACE.svg`, for each benchmark and each entry of `BenchRow.at` that varies.

    Raises:
        UserError: Matplotlib is not installed, a file was not written by `bench --json`, or nothing varies in it.
    """
    figure = _matplotlib()
    rows: dict[str, list[dict[str, Any]]] = {}
    machines: dict[str, str] = {}
    for file in files:
        name, machine, found = _rows(file)
        rows.setdefault(name, []).extend(found)
        machines[name] = machine
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, mine in rows.items():
        value, places = AXES.get(name, ("", {}))
        for place, (title, same) in places.items():
            if points := lines(mine, value, place, same):
                path = folder / f"{name}_by_{title}.svg"
                _picture(figure, points, value, place, f"bench {name}, {machines[name]}", path)
                written.append(path)
    if not written:
        raise UserError(f"bench plot: nothing varies in {files[0]}, expected rows measured with --sweep.")
    return written


def lines(rows: Sequence[dict[str, Any]], value: str, place: str, same: Sequence[str]) -> dict[str, Line]:
    """By `BenchRow.who`, `value` over `place`, with `same` as in most rows; lines of two or more."""
    known = [row for row in rows if row["figures"].get(value) is not None and place in row["at"]]
    settings: dict[tuple[Any, ...], set[float]] = {}
    for row in known:
        settings.setdefault(tuple(row["at"].get(each) for each in same), set()).add(row["at"][place])
    if not settings:
        return {}
    common = max(settings, key=lambda key: len(settings[key]))
    points: dict[str, dict[float, float]] = {}
    for row in known:
        if tuple(row["at"].get(each) for each in same) == common:
            points.setdefault(row["who"], {})[row["at"][place]] = row["figures"][value]
    return {
        who: (sorted(each), [each[at] for at in sorted(each)]) for who, each in points.items() if len(each) > 1
    }


def _rows(file: Path) -> tuple[str, str, list[dict[str, Any]]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["benchmark"], f"{found['machine']}, shape {found['shape']}, {found['dtype']}", found["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"bench plot: {file} cannot be read, expected a file that bench --json wrote.") from error


def _matplotlib() -> Any:
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "bench plot: Matplotlib is not installed, expected it (pip install 'latentwire[plots]')."
        ) from error
    rcParams["svg.fonttype"], rcParams["svg.hashsalt"] = "none", "latentwire"
    return Figure


def _picture(figure: Any, lines: dict[str, Line], value: str, place: str, title: str, path: Path) -> None:
    drawn = figure(figsize=(7, 4.5), layout="constrained")
    axes = drawn.subplots()
    for who, (xs, ys) in lines.items():
        axes.plot(xs, ys, marker="o", label=who, linestyle="--" if who == "floor" else "-")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x for xs, _ in lines.values() for x in xs})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xlabel(LABELS[place])
    axes.set_ylabel(LABELS[value])
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    text = StringIO()
    # Letters as letters, no date: small, and the same file from the same rows.
    drawn.savefig(text, format="svg", metadata={"Date": None})
    write_atomically(path, text.getvalue())

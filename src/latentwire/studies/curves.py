"""Curves: the score over latents against their size in bytes, and against the facts that each latent must hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from latentwire.studies import drawing
from latentwire.studies.shape import Summary

Axis = Literal["bytes", "facts"]
AXES: dict[Axis, str] = {"bytes": "bytes sent for a context", "facts": "facts of a context for each latent"}
LINES = {"text": ("black", "-"), "none": ("0.5", "-"), "type_floor": ("0.5", ":")}
"""Horizontal lines for comparison: the arms over these wires, and a floor."""


@dataclass(frozen=True)
class Point:
    """One arm on one task: its primary metric with its 95 % interval (None for an end without bound)."""

    arm: str
    task: str
    series: str
    bytes: float
    latents: float | None
    facts: float | None
    value: float
    low: float | None
    high: float | None

    @property
    def facts_per_latent(self) -> float | None:
        return self.facts / self.latents if self.facts and self.latents else None

    def at(self, axis: Axis) -> float | None:
        """Its place on an axis; None if it has none."""
        return (self.bytes or None) if axis == "bytes" else self.facts_per_latent


def points(summary: Summary) -> list[Point]:
    """Every arm of a study with a known size, stage by stage."""
    made = []
    for stage, evaluation in summary["derived"].get("evaluations", {}).items():
        for arm, of_arm in evaluation.get("sizes", {}).items():
            for task, size in of_arm.items():
                number = next(iter(summary["stages"][stage]["metrics"][arm][task].values()))
                ends = number["low"], number["high"]
                made.append(
                    Point(f"{stage}/{arm}", task, **size, value=number["value"], low=ends[0], high=ends[1])
                )
    return made


def floors(found: Summary) -> dict[str, dict[str, float]]:
    """By task, the floors that are numbers; the examples are the same in every stage."""
    made: dict[str, dict[str, float]] = {}
    for told in found["derived"].get("evaluations", {}).values():
        made |= told["floors"]
    return made


def draw(summary: Summary, out: Path) -> list[Path]:
    """Draw the curves of a study, one file for each axis.

    Args:
        summary: The study's summary.
        out: Where to draw, such as `curves.svg` or `curves.png`; `-bytes` and `-facts` are put before the ending.

    Returns:
        The files written: only that of bytes if facts are unknown, and none without an arm over latents.

    Raises:
        UserError: matplotlib is not installed, or nothing can be written.
    """
    every = points(summary)
    if not any(each.latents is not None for each in every):
        return []
    names = list(dict.fromkeys(each.series for each in every if each.series not in LINES))
    colours = {name: f"C{at % 10}" for at, name in enumerate(names)}
    written = []
    for axis in AXES:
        shown = [each for each in every if each.at(axis) is not None and each.series not in LINES]
        if not shown:
            continue
        place = out.with_name(f"{out.stem}-{axis}{out.suffix}")
        drawing.write(_figure(axis, shown, colours, _lines(every, floors(summary)), summary["study"]), place)
        written.append(place)
    return written


def _lines(every: Sequence[Point], of: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """By task, the heights of `LINES`."""
    made: dict[str, dict[str, float]] = defaultdict(dict)
    for each in every:
        if each.series in LINES:
            made[each.task].setdefault(each.series, each.value)
    for task, known in of.items():
        made[task] |= {name: value for name, value in known.items() if name in LINES}
    return made


def _figure(
    axis: Axis,
    shown: Sequence[Point],
    colours: Mapping[str, str],
    lines: Mapping[str, Mapping[str, float]],
    study: str,
) -> Any:
    tasks = list(dict.fromkeys(each.task for each in shown))
    wide = min(len(tasks), 4)
    high = -(-len(tasks) // wide)
    figure = drawing.figure(3 * wide + 0.6, 2.8 * high + 0.9)
    from matplotlib.ticker import LogLocator, NullLocator  # after the check that it is installed

    panels = figure.subplots(high, wide, sharey=True, squeeze=False).flatten()
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    for panel, task in zip(panels, tasks, strict=False):
        for name, height in lines.get(task, {}).items():
            colour, dashes = LINES[name]
            panel.axhline(height, color=colour, linestyle=dashes, linewidth=1, label=name)
        for name, colour in colours.items():
            some = [each for each in shown if (each.series, each.task) == (name, task)]
            _curve(panel, axis, some, colour, name)
        panel.set(title=task, xscale="log", ylim=(-0.02, 1.02))
        panel.xaxis.set_minor_locator(NullLocator())
        if axis == "facts":
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            panel.xaxis.set_major_formatter("{x:g}")
    figure.supxlabel(f"{study}: {AXES[axis]}", fontsize=10)
    figure.supylabel("primary metric, 95 % interval", fontsize=10)
    drawn = [panel.get_legend_handles_labels() for panel in panels]
    handles = {label: each for found in drawn for each, label in zip(*found, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4 * wide, fontsize=8)
    return figure


def _curve(panel: Any, axis: Axis, some: Sequence[Point], colour: str, name: str) -> None:
    """Every arm with its interval, and a line through the mean of each size (over seeds)."""
    where = [(each, x) for each in some if (x := each.at(axis)) is not None]
    if not where:
        return
    below = [max(0.0, each.value - (each.low or 0.0)) for each, _ in where]
    above = [max(0.0, (1.0 if each.high is None else each.high) - each.value) for each, _ in where]
    values = [each.value for each, _ in where]
    panel.errorbar(
        [x for _, x in where], values, [below, above], fmt=".", color=colour, linewidth=1, clip_on=False
    )
    panel.plot(*zip(*_means(where), strict=True), color=colour, linewidth=1, label=name, clip_on=False)


def _means(where: Sequence[tuple[Point, float]]) -> Iterator[tuple[float, float]]:
    alike: dict[float, list[float]] = defaultdict(list)
    for each, x in where:
        alike[x].append(each.value)
    for x, values in sorted(alike.items()):
        yield x, mean(values)

"""Estimates as tables for the screen, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from latentwire.estimates.forecast import Forecast
from latentwire.estimates.offers import CASES, Offers
from latentwire.estimates.run_pace import RunPace
from latentwire.estimates.workload import GIB, Workload


def stages(workloads: Mapping[str, Workload], offers: Offers) -> Table:
    """What every stage needs, with its base time on the first offer."""
    first = next(iter(offers.offers))
    table = Table("stage", "kind", "units", "tokens", "operations", "GiB", f"minutes on {first}", "", box=None)
    for name, each in workloads.items():
        minutes = each.seconds(offers.offers[first], offers) / 60
        table.add_row(
            name, each.kind, f"{each.units:,}", _short(each.tokens), _short(each.operations),
            f"{each.memory / GIB:.2f}", f"{minutes:.1f}", each.remark,
        )  # fmt: skip
    return table


def table(forecasts: Sequence[Forecast], offers: Offers, *, moving: bool = False) -> Table:
    """Hours and dollars of each offer, optimistic / base / pessimistic."""
    made = Table("offer", "$/h", "GiB", "fits", "hours (opt / base / pess)", "$ (opt / base / pess)", box=None)
    if moving:
        made.add_column("against staying (base)")
    stay = forecasts[0]
    for each in forecasts:
        offer = offers.offers.get(each.offer)
        cells = [
            each.offer + (" (move)" if each.moves else ""),
            "?" if offer is None else f"{offer.dollars_per_hour:.4f}".rstrip("0").rstrip("."),
            f"{each.memory_gib:.1f}" + ("" if offer is None else f" of {offer.memory_gib:g}"),
            "yes" if each.fits else "NO",
            " / ".join(f"{each.hours[case]:.2f}" for case in CASES),
            "?" if each.dollars is None else " / ".join(f"{each.dollars[case]:.2f}" for case in CASES),
        ]
        if moving:
            cells.append(_against(each, stay))
        made.add_row(*cells)
    return made


def _against(each: Forecast, stay: Forecast) -> str:
    if not each.moves:
        return ""
    hours = f"{each.hours['base'] - stay.hours['base']:+.2f} h"
    if each.dollars is None or stay.dollars is None:
        return hours
    return f"{hours}, {each.dollars['base'] - stay.dollars['base']:+.2f} $"


def to_json(
    workloads: Mapping[str, Workload], forecasts: Sequence[Forecast], offers: Offers, pace: RunPace | None
) -> dict[str, Any]:
    """Everything that the tables say."""
    return {
        "checked": offers.checked.isoformat(),
        "stages": {name: asdict(each) for name, each in workloads.items()},
        "offers": [asdict(each) for each in forecasts],
        "pace": None if pace is None else {**asdict(pace), "seconds_left": pace.seconds_left},
    }


def _short(number: float) -> str:
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"

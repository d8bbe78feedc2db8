"""A benchmark's rows as a table and as JSON, with the machine on which they were measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

from latentwire.bench.setup import BenchRow, Setup
from latentwire.version import __version__

PACKAGES = ("torch", "transformers")


def table(title: str, rows: Sequence[BenchRow]) -> Table:
    """One line for each row; columns in the order in which rows name them."""
    made = Table(title=title)
    made.add_column("")
    places = list(dict.fromkeys(name for row in rows for name in row.at))
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    for name in (*places, *names):
        made.add_column(name.replace("_", " "), justify="right")
    made.add_column("")
    for row in rows:
        figures = [row.figures.get(name) for name in names]
        made.add_row(
            row.who, *[str(row.at.get(name, "")) for name in places], *map(_figure, figures), row.note or None
        )
    return made


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def document(name: str, setup: Setup, rows: Sequence[BenchRow]) -> dict[str, Any]:
    """What `--json` writes: machine, versions, ceilings and rows."""
    return {
        "benchmark": name,
        "latentwire": __version__,
        "machine": machine(setup.device),
        "versions": {"python": platform.python_version(), **{each: version(each) for each in PACKAGES}},
        "shape": setup.shape,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "ceilings": {"flops": setup.flops, "bytes_per_second": setup.bandwidth},
        "rows": [asdict(row) for row in rows],
    }


def machine(device: torch.device) -> str:
    """The GPU's name, or the processor's kind and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"

"""What the command `bench` does: check its options, measure, print and write."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from latentwire import bench
from latentwire.bench import measurements, plots
from latentwire.bench.setup import SHAPES, Setup
from latentwire.errors import UserError, one_of
from latentwire.files import check_writable, write_atomically
from latentwire.printing import console

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def plot(files: Sequence[Path], folder: Path) -> None:
    """Draw files that `--json` wrote and print the pictures' paths.

    Raises:
        UserError: no file, or as `plots.draw`.
    """
    if not files:
        raise UserError("bench plot: found no file, expected files that bench --json wrote.")
    for path in plots.draw(files, folder):
        print(path)


def run(
    name: str, *, shape: str | None, sweep: bool, only: str, dtype: str | None, json_file: Path | None
) -> None:
    """Measure a benchmark and print its table; each row is also written to `json_file` as soon as it is measured.

    Raises:
        UserError: an option is wrong; nothing has been measured then.
    """
    if name not in bench.NAMES:
        raise UserError(f"bench: found {name!r}, expected {one_of(name, [*bench.NAMES, 'plot'])}.")
    if only and only not in (allowed := (*bench.parts(name), "sweep")):
        raise UserError(f"only: found {only!r}, expected {one_of(only, allowed)}.")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype: found {dtype!r}, expected {one_of(dtype, DTYPES)}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = shape or ("3b" if device.type == "cuda" else "tiny")
    if shape not in SHAPES:
        raise UserError(f"shape: found {shape!r}, expected {one_of(shape, SHAPES)}.")
    if json_file is not None:
        check_writable(json_file, "json")
    setup = Setup(device, shape, sweep, only, DTYPES.get(dtype or ""))
    print(f"{bench.NAMES[name]}\n{measurements.machine(device)}, shape {shape}, {setup.dtype}", flush=True)
    rows = []
    for row in bench.measure(name, setup):
        rows.append(row)
        figures = ", ".join(f"{key} {value:.4g}" for key, value in row.figures.items() if value is not None)
        print(f"  {row.who} {row.at or ''}: {figures} {row.note}", file=sys.stderr, flush=True)
        if json_file is not None:
            write_atomically(json_file, json.dumps(measurements.document(name, setup, rows), indent=1) + "\n")
    console().print(measurements.table(name, rows))

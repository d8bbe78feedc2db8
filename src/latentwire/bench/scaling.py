"""`latentwire bench scaling`: throughput of training and evaluation in 1, 2, 4 ... processes, one for each GPU.

Each process has as much to do however many there are (weak scaling), so that N of them should do N times as much a
second; `share_of_linear` says how much of that they do. On a machine without GPUs one and two processes share the
processor's cores: that shows that everything runs, and nothing about scaling.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from latentwire import process_launch
from latentwire.bench.setup import BenchRow, Setup
from latentwire.errors import UserError

PARTS = ("weights", "wire", "evaluation")
"""All weights of a model (FSDP2), a latent wire before a frozen reader (DDP), and answers to questions."""
WORKER = "latentwire.bench.scaling_worker"


def measure(setup: Setup) -> Iterator[BenchRow]:
    """Each part in each number of processes, beside one process."""
    alone: dict[str, float] = {}
    for count in _counts(setup):
        for row in _measured(setup, count):
            speed = row.figures["per_second"]
            if count == 1 and speed is not None:
                alone[row.who] = speed
            share = speed / (count * alone[row.who]) if speed and row.who in alone else None
            yield replace(row, figures={**row.figures, "share_of_linear": share})


def _counts(setup: Setup) -> list[int]:
    """1, 2, 4 and so on up to the number of GPUs, and that number; 1 and 2 without GPUs."""
    most = torch.cuda.device_count() if setup.device.type == "cuda" else 2
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def _measured(setup: Setup, count: int) -> list[BenchRow]:
    parts = ",".join(part for part in PARTS if setup.wants(part))
    dtype = str(setup.dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="latentwire-scaling-") as folder:
        file = Path(folder) / "rows.json"
        arguments = [setup.shape, dtype, parts, str(file)]
        cpu = setup.device.type != "cuda"
        if process_launch.launch(arguments, count, cpu=cpu, module=WORKER):
            raise UserError(f"bench scaling: {count} processes failed; what they said stands above.")
        return [BenchRow(**row) for row in json.loads(file.read_text(encoding="utf-8"))]

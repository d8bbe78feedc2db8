"""From files to a model that reads: this package beside Transformers and beside reading the same bytes.

A model with random weights in bfloat16 is written in shards to a temporary folder. Every load runs in a process of
its own and is timed after its imports, so that the peak of memory is its own. This package also checks the files'
headers, looks for NaN in every weight, and reads a few tokens to see that masks are obeyed.
Transformers may leave the weights in the files, to be read when they are first used.

`peak_over_weights` counts pages of the files that are mapped, which the system drops as it likes;
`own_over_weights` is the process's own memory once the model stands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from latentwire.bench.decode_timing import tokenizer
from latentwire.bench.setup import GIB, BenchRow, Setup

PARTS = ("cold", "warm")
"""With the files removed from the page cache, where the system can do that, and with the files in it."""
REPEATS = 2
SHARD = "2GB"
CHUNK = 2**24
CHILD = "latentwire.bench.load_child"
WAYS = {
    "transformers": "AutoModelForCausalLM.from_pretrained",
    "latentwire": "latentwire, LM.load",
}


def measure(setup: Setup) -> Iterator[BenchRow]:
    """Reading the files, Transformers, and this package, from cold and from warm files; the faster of two runs."""
    with TemporaryDirectory(prefix="latentwire-bench-") as place:
        folder = Path(place)
        model = replace(setup, precision=torch.bfloat16).model()
        billions = round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 4)
        model.save_pretrained(folder, max_shard_size=SHARD)
        tokenizer().save_pretrained(folder)
        del model
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
        files = sorted(folder.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        for part in PARTS:
            if not setup.wants(part):
                continue
            at: dict[str, str | int | float] = {
                "shape": setup.shape,
                "billions": billions,
                "dtype": "bfloat16",
                "files": part,
            }
            _ready(files, part)  # and once that does not count
            floor = min(_read(files, part) for _ in range(REPEATS))
            yield BenchRow(f"reading the {len(files)} files", _figures(floor, floor, size), at)
            for way, who in WAYS.items():
                yield _loaded(way, who, files, setup.device, part, floor, size, at)


def _loaded(
    way: str,
    who: str,
    files: list[Path],
    device: torch.device,
    part: str,
    floor: float,
    size: int,
    at: dict[str, str | int | float],
) -> BenchRow:
    seconds, peaks, own = [], [], []
    for _ in range(REPEATS):
        _ready(files, part)
        command = [sys.executable, "-m", CHILD, way, str(files[0].parent), str(device)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            return BenchRow(
                who, {"seconds": None}, at, note=(ran.stderr.strip().splitlines() or ["failed"])[-1][:200]
            )
        found = json.loads(ran.stdout.splitlines()[-1])
        seconds.append(found["seconds"])
        peaks.append(found["peak_bytes"])
        own.append(found["own_bytes"])
    memory = {"peak_over_weights": max(peaks) / size, "own_over_weights": max(own) / size}
    return BenchRow(who, {**_figures(min(seconds), floor, size), **memory}, at)


def _figures(seconds: float, floor: float, size: int) -> dict[str, float | None]:
    return {
        "seconds": seconds,
        "gigabytes_per_second": size / seconds / 1e9,
        "times_reading": seconds / floor,
        "weights_gib": size / GIB,
    }


def _ready(files: list[Path], part: str) -> None:
    """Remove the files from the page cache, or read all of them into it."""
    for file in files:
        with file.open("rb") as stream:
            if part == "cold" and hasattr(os, "posix_fadvise"):
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            elif part == "warm":
                while stream.read(CHUNK):
                    pass


def _read(files: list[Path], part: str) -> float:
    """How many seconds it takes to read the files one after another into one buffer."""
    _ready(files, part)
    buffer = memoryview(bytearray(CHUNK))
    started = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - started

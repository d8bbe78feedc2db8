"""`diagnostics.jsonl`: one line a logged step, and the samples of each evaluation."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentwire.files import write_atomically


class Diagnostics:
    """Appends lines; on resuming drops those of steps that will be run again.

    writes: false for all processes of a training but one.
    """

    def __init__(self, folder: Path, step: int, *, writes: bool = True) -> None:
        self._writes = writes
        self._path = folder / "diagnostics.jsonl"
        self._samples = folder / "samples"
        if writes and self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= step]
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def samples(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        """Samples of one step; never overwritten."""
        path = self._samples / f"step_{step:06d}.jsonl"
        if self._writes and samples and not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**62  # half a line, left by a kill


def memory_gib() -> float:
    """Peak memory so far: the accelerator's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

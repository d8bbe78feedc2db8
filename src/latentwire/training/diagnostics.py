"""`diagnostics.jsonl`: one line for each logged step and evaluation, and the samples of each evaluation.

Trackers, where there are any, get the same after it is on disk.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentwire.files import write_atomically
from latentwire.training.trackers import Trackers


class Diagnostics:
    """Appends lines; on resuming it drops those of steps and evaluations that will be run again.

    Args:
        folder: The run's folder.
        step: Steps that are done.
        evaluated: The evaluation after these steps, where one is due, is done too.
        writes: False for all processes of a training but one.
    """

    def __init__(self, folder: Path, step: int, *, evaluated: bool = True, writes: bool = True) -> None:
        forget_peak()
        self._writes = writes
        self._path = folder / "diagnostics.jsonl"
        self._samples = folder / "samples"
        if writes and self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _is_kept(line, step, evaluated)]
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))
        self._trackers = Trackers(folder, step) if writes else None

    def write(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._trackers is not None:
            self._trackers.log({key: value for key, value in line.items() if key != "step"}, line["step"])

    def samples(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        """Samples of one step; never overwritten."""
        path = self._samples / f"step_{step:06d}.jsonl"
        if self._writes and samples and not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
            if self._trackers is not None:
                self._trackers.samples(samples, step)

    def close(self) -> None:
        """The training has ended or is interrupted: trackers complete what they keep."""
        if self._trackers is not None:
            self._trackers.finish()


def _is_kept(line: str, step: int, evaluated: bool) -> bool:
    try:
        values = json.loads(line)
        at = int(values["step"])
    except (ValueError, KeyError):
        return False  # half a line, left by a kill
    return at < step or (at == step and (evaluated or "eval_loss" not in values))


def forget_peak() -> None:
    """Count the peak of every accelerator anew: a process may carry out several stages."""
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)


def memory_gib() -> float:
    """Peak memory so far: the accelerator's since `forget_peak` where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

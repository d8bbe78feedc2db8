"""Loads a model once in this process: `-m latentwire.bench.load_child WAY FOLDER DEVICE`, JSON on stdout."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from latentwire.lm.model import LM


def load(way: str, folder: str, device: str) -> object:
    """The model in bfloat16, loaded by Transformers or by this package."""
    if way == "transformers":
        placed = {} if device == "cpu" else {"device_map": {"": device}}
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **placed)
    return LM.load(folder, dtype=torch.bfloat16, device=device)


def main(way: str, folder: str, device: str) -> None:
    """Load and print seconds, and bytes of memory at the peak and at the end."""
    torch.zeros(1, device=device)
    # Importing the model's code does not count as loading.
    AutoModelForCausalLM._model_mapping[type(AutoConfig.from_pretrained(folder))]
    before, mine = _memory("VmRSS"), _memory("RssAnon")
    started = time.perf_counter()
    loaded = load(way, folder, device)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "own_bytes": _memory("RssAnon") - mine}))
    del loaded


def _memory(name: str) -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])

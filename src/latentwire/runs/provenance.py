"""What a run was made with: versions, the state of the code, the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from latentwire.version import __version__

ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "OMP_NUM_THREADS")
"""Variables of the environment that change how a run is carried out; no others are recorded."""
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "safetensors", "numpy", "scipy")


def gather() -> dict[str, Any]:
    """`versions`, `git`, `machine` and `command`, as a run's record holds them."""
    return {"versions": versions(), "git": git_state(), "machine": machine(), "command": command()}


def command() -> tuple[str, ...]:
    """The command line as given: the program's name and its arguments, after the settings of `ENVIRONMENT`."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    settings = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    return (*settings, "latentwire" if program == "__main__.py" else program, *sys.argv[1:])


def versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the libraries that numbers depend on."""
    numbers = {"latentwire": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            continue
    return numbers


def git_state() -> dict[str, str | bool] | None:
    """The commit of this package's source and whether files differ from it; None outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".")
    return None if commit is None or changes is None else {"commit": commit, "changed": bool(changes)}


def machine() -> dict[str, str | int]:
    """The host, its cores and its accelerators."""
    import torch

    facts: dict[str, str | int] = {"platform": platform.platform(), "cores": os.cpu_count() or 1}
    facts["threads"] = torch.get_num_threads()
    if processor := _processor():
        facts["processor"] = processor
    if torch.cuda.is_available():
        facts["accelerators"] = torch.cuda.device_count()
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    """The model of the processor, empty where the system does not say."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def _git(*words: str) -> str | None:
    source = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(["git", *words], cwd=source, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""What this machine has, and whether the embedded models are intact."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

REQUIRED = ("torch", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub", "pydantic", "scipy")
OPTIONAL = ("lm_eval", "datasets", "bitsandbytes", "matplotlib")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        healthy: whether it is as this project needs it.
        detail: a version, a size, or what is wrong.
    """

    subject: str
    healthy: bool
    detail: str


def examine() -> Iterator[Finding]:
    """Examine packages, machine and embedded models; yields each finding as soon as it is made.

    Example:
        >>> all(finding.healthy for finding in examine())
        True
    """
    yield Finding("python", True, f"{platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            yield Finding(name, False, "not installed")
    missing = [name for name in OPTIONAL if find_spec(name) is None]
    yield Finding(
        "optional packages", True, f"not installed: {', '.join(missing)}" if missing else "all installed"
    )
    yield from _machine()
    yield from _embedded()


def _machine() -> Iterator[Finding]:
    import torch

    from latentwire.lm.loading.processor import bfloat16_slowdown

    yield Finding("threads", True, f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    yield Finding("bfloat16", True, f"takes {bfloat16_slowdown():.1f} times as long as float32 on the processor")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("disk", free > 1, f"{free:.0f} GiB free here")
    if not torch.cuda.is_available():
        yield Finding("accelerator", True, "none: models are read on the CPU in float32")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(
            f"accelerator {index}", True, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        )


def _embedded() -> Iterator[Finding]:
    from latentwire import models
    from latentwire.lm.model import LM

    for name in models.NAMES:
        try:
            lm = LM.load(f"embedded:{name}", device="cpu")
        except Exception as error:  # any failure is a finding
            yield Finding(f"embedded:{name}", False, str(error).splitlines()[0])
            continue
        count = sum(p.numel() for p in lm.model.parameters())
        yield Finding(
            f"embedded:{name}", True, f"{type(lm.model).__name__}, {count / 1e6:.1f} M parameters, reads"
        )

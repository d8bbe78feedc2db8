"""Work of several processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def cores() -> int:
    """Processors that this process may use: a job or a container may be given fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(make: Callable[[Given], Made], parts: Iterable[Given]) -> list[Made]:
    """What `make` gives for each part, in their order, one process a core."""
    # What a process has been given is not collected again and again while it makes millions of small objects.
    with ProcessPoolExecutor(cores(), initializer=gc.freeze) as pool:
        return list(pool.map(make, parts))

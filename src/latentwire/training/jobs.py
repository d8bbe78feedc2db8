"""Work spread over several processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def cores() -> int:
    """How many processors this process may use: a job or a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def without_collection() -> Iterator[None]:
    """While millions of objects are made that stay, Python would look through all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def spread(make: Callable[[Given], Made], parts: Iterable[Given]) -> list[Made]:
    """Call `make` on each part in one process a core; results come in the order of the parts."""
    # A process takes `make` when it starts, not with every part: what it holds may be a large tokenizer.
    with ProcessPoolExecutor(cores(), initializer=_start, initargs=(make,)) as pool:
        return list(pool.map(_made, parts))


_make: Callable[[Any], Any]


def _start(make: Callable[[Any], Any]) -> None:
    global _make
    _make = make
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    # Without it each process would scan what it was given again and again while it makes millions of objects.
    gc.freeze()


def _made(part: Any) -> Any:
    return _make(part)

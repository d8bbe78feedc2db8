"""The processes that carry out one command together, one for each GPU, and what they tell each other.

They are started by `process_launch` or by torchrun, whose variables (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`,
`MASTER_ADDR` and so on) say who they are. Objects travel over gloo, gradients over NCCL where there are GPUs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from latentwire.errors import UserError

T = TypeVar("T")

TIMEOUT = timedelta(days=7)
"""How long a process waits for the others: one may evaluate or save for hours. A dead one ends the wait."""
GRACE = 5.0
"""Seconds that a process which cannot go on leaves the first one to say what is wrong."""
LAUNCHER = "LATENTWIRE_LAUNCHER"
"""The process id of the command that started the processes: without it they end too."""


@dataclass(frozen=True)
class Group:
    """The processes of a command, and which of them this one is.

    Attributes:
        index: This process; the first, 0, plans, writes and prints.
        size: How many there are.
        local_size: How many of them are on this machine.

    Example:
        >>> ALONE.gathered("one")
        ['one']
    """

    index: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of what all have; see `interleaved`."""
        return items[self.index :: self.size]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order; every process gets them."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def interleaved(self, mine: Sequence[T]) -> list[T]:
        """What all processes made of their shares, in the order of the whole."""
        parts = self.gathered(list(mine))
        return [parts[at % self.size][at // self.size] for at in range(sum(map(len, parts)))]

    def told(self, value: T) -> T:
        """The first process's value; the others wait for it."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        told: T = values[0]
        return told

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gathered(None)

    def leader_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in every process; the first one has done its part before the others begin.

        Raises:
            SystemExit: In the others, if it raised in the first one, which says why.
        """
        if self.size == 1:
            return make()
        if not self.leads:
            if not self.told(False):
                self.give_way()
                raise SystemExit(1)
            return make()
        try:
            made = make()
        except BaseException:
            self.told(False)
            raise
        self.told(True)
        return made

    def note(self, sentence: str) -> None:
        """Leave word of why this process cannot go on."""
        if store := _store():
            store.set(f"latentwire/failed/{self.index}", sentence)

    def notes(self) -> dict[int, str]:
        """By process, why it could not go on."""
        store, keys = _store(), {at: f"latentwire/failed/{at}" for at in range(self.size)}
        try:
            return {at: store.get(key).decode() for at, key in keys.items() if store and store.check([key])}
        except (RuntimeError, OSError):
            return {}  # it went with the process that kept it

    def give_way(self) -> None:
        """Leave the first process some seconds to end first: its sentence and status are those that count."""
        if self.size > 1 and not self.leads:
            time.sleep(GRACE)


ALONE = Group()
"""One process."""


def current() -> Group:
    """The group that this process has joined; `ALONE` if none."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return ALONE
    local = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return Group(dist.get_rank(), dist.get_world_size(), local)


def started() -> bool:
    """Whether this process was started as one of several, by `process_launch` or torchrun."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


@contextmanager
def joined() -> Iterator[Group]:
    """Join the group that torchrun's variables name, until the end of the block; `ALONE` without them.

    Raises:
        UserError: This machine has fewer GPUs than processes.
    """
    if not started():
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    _watch_launcher()
    backend, local = "gloo", int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UserError(
                f"processes: found more than the {torch.cuda.device_count()} GPUs of this machine, expected one "
                "for each at most."
            )
        torch.cuda.set_device(local)  # what is moved to `cuda` from now on goes there
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield current()
    finally:
        if sys.exc_info()[0] is None:  # else others may be gone, and leaving in order would wait for them
            dist.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    import torch.distributed as dist

    words = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe", "socket")
    said = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(w in said for w in words))


def _store() -> Any:
    """The key-value store through which the processes found each other."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return None
    return dist.distributed_c10d._get_default_store()


def _watch_launcher() -> None:
    """End as SIGTERM would, with a snapshot, if the command that started the processes is killed."""
    launcher = int(os.environ.get(LAUNCHER, 0))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()

"""Several processes that share work over gloo, forked from the test's own: PyTorch is imported only once."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SECONDS = 120


def together(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(group, *args)` returns in each of `count` processes; raises if one of them failed."""
    statuses, results = attempt(count, work, *args)
    assert statuses == [0] * count, f"exit statuses {statuses}: {results}"
    return results


def attempt(count: int, work: Callable[..., Any], *args: Any) -> tuple[list[int], list[Any]]:
    """The exit status of each process (minus the signal's number where one ended it), and what it returned.

    Once one process has ended with another status than 0, the others get SIGTERM, as the launcher does it.
    """
    with tempfile.TemporaryDirectory() as folder:
        place, port = Path(folder), _free_port()
        pids = [_fork(rank, count, port, place, work, args) for rank in range(count)]
        statuses = _wait(pids)
        files = [place / str(rank) for rank in range(count)]
        return statuses, [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _wait(pids: list[int]) -> list[int]:
    statuses: dict[int, int] = {}
    deadline, ended = time.monotonic() + SECONDS, False
    while len(statuses) < len(pids):
        for pid in set(pids) - statuses.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for pid in set(pids) - statuses.keys():
                os.kill(pid, signal.SIGKILL)
        if not ended and any(statuses.values()):
            ended = True
            for pid in set(pids) - statuses.keys():
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.01)
    return [statuses[pid] for pid in pids]


def _fork(rank: int, count: int, port: int, place: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        _become(rank, count, port)
        from latentwire import process_group

        with process_group.joined() as group:
            result = work(group, *args)
        status = 0
    except SystemExit as stopped:
        result, status = None, stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        result = traceback.format_exc()
    finally:
        (place / str(rank)).write_bytes(pickle.dumps(result))
        os._exit(status)


def _become(rank: int, count: int, port: int) -> None:
    from accelerate.state import PartialState

    PartialState._reset_state()  # what the parent made is of one process
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port

"""Starts the processes of one command, one for each GPU, as torchrun does: torch's elastic agent in this process.

What it adds to torchrun: SIGTERM, Ctrl-C and a hang-up go to all processes at once, which then have all the time
they need for their snapshot; the exit status is that of the first process; and the agent itself prints nothing.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

from latentwire.errors import UserError
from latentwire.process_group import LAUNCHER, started

STOP = 20
"""Seconds that the other processes get to end after one has failed, before they are killed."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def asked(gpus: int | None, processes: int | None) -> int | None:
    """How many processes to start; None if this process does the work, alone or as one of several.

    Args:
        gpus: How many GPUs to use, one process for each.
        processes: Instead, how many processes on the CPU.

    Raises:
        UserError: Both are given, this machine has fewer GPUs, or torchrun has started the processes already.
    """
    if gpus is None and processes is None:
        return None
    name, count = ("gpus", gpus) if gpus is not None else ("processes", processes)
    if gpus is not None and processes is not None:
        raise UserError(f"processes: found {processes} beside gpus: {gpus}, expected one of the two.")
    if count is None or count < 1:
        raise UserError(f"{name}: found {count}, expected 1 or more.")
    if started():
        if LAUNCHER in os.environ:
            return None
        raise UserError(f"{name}: found {count} under torchrun, expected none: torchrun says how many processes.")
    if gpus is not None:
        _check_gpus(gpus)
    return None if count == 1 and gpus is not None else count


def _check_gpus(count: int) -> None:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > there:
        cpu = "" if there else f"; --processes {count} runs as many processes on the CPU"
        has = "no GPU" if there == 0 else f"{there} GPU{'s' if there > 1 else ''}"
        raise UserError(f"gpus: found {count}, and this machine has {has}{cpu}.")


def launch(arguments: Sequence[str], count: int, *, cpu: bool, module: str = "latentwire.cli") -> int:
    """Run `python -m MODULE ARGUMENTS` in several processes of this machine, to their end.

    Args:
        arguments: The command, such as `["run", "study.yaml"]`.
        count: How many processes.
        cpu: Hide the GPUs from them.

    Returns:
        The exit status: that of the first process, 128 + N after signal N, 1 if a process died.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": count,
        "run_id": str(os.getpid()),
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
        "monitor_interval": 0.1,
        # The agent would end everything half a minute after a signal: signals are handled below.
        "signals_to_handle": "SIGUSR2",
        "shutdown_timeout": STOP,
    }
    known = {field.name for field in fields(LaunchConfig)}
    with _set(_environment(cpu, count)), _forwarding() as signals:
        try:
            agent = elastic_launch(
                LaunchConfig(**{name: value for name, value in config.items() if name in known}), sys.executable
            )
            agent("-m", module, *arguments)
        except ChildFailedError as error:
            return _status(error.failures, count, signals)
    return 128 + signals[0] if signals else 0


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _environment(cpu: bool, count: int) -> Mapping[str, str]:
    # DDP would say in every process that all weights were used, which it was asked to find out.
    variables = {LAUNCHER: str(os.getpid()), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if cpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, _cores() // count))
    return variables


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _forwarding() -> Iterator[list[int]]:
    """Send the signals that this process gets to all processes that it has started; gives the signals."""
    received: list[int] = []
    told: set[tuple[int, int]] = set()  # a process that is started later must be told too
    over = threading.Event()

    def forward(number: int, frame: object) -> None:
        if number in received:
            told.clear()  # a second Ctrl-C means at once
        received.append(number)
        _tell(received[-1], told)

    def repeat() -> None:
        while not over.wait(0.5):
            if received:
                _tell(received[-1], told)

    before: dict[int, Any] = {number: signal.signal(number, forward) for number in FORWARDED}
    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield received
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(number: int, told: set[tuple[int, int]]) -> None:
    """Send a signal to every process that this one has started and that has not had it."""
    psutil: Any = importlib.import_module("psutil")  # it has no types
    for child in psutil.Process().children():
        if (child.pid, number) not in told:
            told.add((child.pid, number))
            _send(child.pid, number)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it may have ended by itself
        os.kill(pid, number)


def _status(failures: Mapping[int, Any], count: int, signals: Sequence[int]) -> int:
    """The exit status after a failure; says which process died, if one did."""
    if signals:
        return 128 + signals[0]
    codes = {at: failure.exitcode for at, failure in failures.items()}
    # What the agent itself has ended, after another process had failed, says nothing.
    first = min(failures.values(), key=lambda failure: failure.timestamp)
    dead = {at: code for at, code in codes.items() if code < 0 and at == first.local_rank}
    for at, code in dead.items():
        name = signal.Signals(-code).name
        print(
            f"latentwire: process {at} of {count} was ended by {name}, and the others were stopped; the same "
            "command goes on from the last snapshot.",
            file=sys.stderr,
        )
    if codes.get(0, -1) > 0 and not dead:
        return int(codes[0])
    return max(1, int(first.exitcode))

"""Runs a launch's steps on the other machine, detached from every connection.

A script of its own, which needs Python's standard library and nothing else:

    python -I worker.py FOLDER < JOB.json

The job: `steps` (name and argv each), `cwd`, `environment`, `seconds` (the budget that is left, or null), `grace`
(seconds between asking and killing) and `secret` (environment variables that no file ever holds). Started twice,
the second one does nothing: a lock says that one is at work, and its child keeps that lock.

`FOLDER/worker.json` is written in place, in a block that exists from the start: a full disk cannot silence it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

BLOCK = 4096
BEAT = 2.0
LOG, STATE, LOCK = "log.txt", "worker.json", "worker.lock"
AT_WORK = "at work already"
DEADLINE, STOPPED, STEP = "budget", "stopped", "step"


class Worker:
    """The steps of one launch, one after another, under a lock and before a deadline.

    `lingers` is for a scheduler that asks before it kills: how many seconds to wait then for its next word.
    """

    def __init__(self, folder: Path, lock: int, job: dict[str, Any], lingers: float = 0) -> None:
        self.folder, self.lock, self.job = folder, lock, job
        self.secret: dict[str, str] = job.get("secret", {})
        self.deadline = time.time() + job["seconds"] if job.get("seconds") is not None else None
        self.lingers = lingers
        self.asked: str | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.state: dict[str, Any] = {"pid": os.getpid(), "started": time.time(), "step": None, "ended": None}

    def work(self) -> int:
        """Carry the steps out; the exit status is that of the step that failed, or 0."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop(STOPPED))
        status, name = 0, ""
        for name, argv in self.job["steps"]:
            self.state["step"] = name
            status = self._step(argv)
            if status or self.asked:
                break
        if self.asked == STOPPED and self.lingers:
            self.write()
            time.sleep(self.lingers)
        self.state["ended"] = {"status": status, "at": time.time(), "step": name, "why": self.asked or STEP}
        self.write()
        return status

    def _past(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline

    def end(self) -> None:
        """End the current step now: ask, wait for `grace` seconds, kill."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(self.job["grace"])
            except subprocess.TimeoutExpired:
                self.child.kill()

    def stop(self, why: str) -> None:
        """Ask the current step to end, as `SIGTERM` does: a training then saves a snapshot."""
        self.asked = self.asked or why

    def _step(self, argv: list[str]) -> int:
        kept = {name: value for name, value in os.environ.items() if name != "PWD"}
        try:
            self.child = subprocess.Popen(
                argv,
                cwd=self.folder / self.job["cwd"],
                env={**kept, **self.job["environment"], **self.secret},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=_unheard,
                pass_fds=(self.lock,),  # outliving us, it still holds the lock: no second one starts
            )
        except OSError as error:
            self._append(f"{argv[0]}: {error.strerror}\n".encode())
            return 127
        reader = threading.Thread(target=self._copy, daemon=True)
        reader.start()
        signalled = 0.0
        while (status := self.child.poll()) is None:
            if self._past():
                self.stop(DEADLINE)
            if self.asked and not signalled:
                signalled = time.time()
                self.child.terminate()
            elif signalled and time.time() > signalled + self.job["grace"]:
                self.child.kill()
            self.write()
            try:
                self.child.wait(0.2 if self.asked else BEAT)
            except subprocess.TimeoutExpired:
                continue
        reader.join(BEAT)
        return status

    def _copy(self) -> None:
        """What the child prints goes to the log without secrets; a full disk loses lines, not the child."""
        assert self.child is not None
        assert self.child.stdout is not None
        hidden = [value.encode() for value in self.secret.values() if len(value) > 3]
        for line in self.child.stdout:
            for value in hidden:
                line = line.replace(value, b"***")
            self._append(line)

    def _append(self, line: bytes) -> None:
        try:
            with (self.folder / LOG).open("ab", buffering=0) as log:
                log.write(line)
        except OSError:
            pass

    def write(self) -> None:
        """Write the state, with the time: a heartbeat."""
        self.state["beat"] = time.time()
        self.state["child"] = self.child is not None and self.child.poll() is None
        overwrite(self.folder / STATE, self.state)


def _unheard() -> None:
    """A scheduler signals every process of a job; the signal is for the worker, and would end a child at once."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def overwrite(path: Path, state: dict[str, Any]) -> None:
    """Write a small JSON over a block that is there already: this works on a full disk."""
    block = json.dumps(state).encode().ljust(BLOCK)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, block, 0)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def locked(folder: Path) -> int | None:
    """The lock's descriptor, or None while another process holds it."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def main(folder: Path) -> int:
    """Detach a worker, unless one is at work."""
    os.umask(0o077)
    lock = locked(folder)
    if lock is None:
        print(AT_WORK)
        return 0
    worker = Worker(folder, lock, json.load(sys.stdin))
    worker.write()
    if child := os.fork():
        print(child)
        sys.stdout.flush()
        os._exit(0)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    worker.state["pid"] = os.getpid()
    worker.write()
    status = worker.work()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

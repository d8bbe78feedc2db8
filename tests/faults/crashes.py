"""Ends a run at any one of its file operations, then asks whether the same command still reaches the same results.

Every attempt is a fork of one warm process, so that a thousand take minutes. Run whole:

    python -m tests.faults.crashes finetuning wire evaluation --every 1

Modes: `kill` ends the process before the operation; `torn` also leaves the file that was about to be written with
one byte in it; `full` lets the operation fail as a full disk does.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["kill", "torn", "full"]
MODES: tuple[Mode, ...] = ("kill", "torn", "full")
KILLED = 137
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
RESULTS = ("outcomes.jsonl", "metrics.json")
_TIMES = ("seconds", "memory", "gib", "tokens_per_second", "time")


@dataclass
class Disk:
    """Counts what a process changes below a folder, and strikes at one operation.

    Attributes:
        root: the folder that is watched.
        at: the number of the operation to strike at, counted from 0; None only counts.
        mode: how to strike.
    """

    root: Path
    at: int | None = None
    mode: Mode = "kill"
    seen: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Watch this process to its end: audit hooks cannot be removed, so call it in a fork only."""
        sys.addaudithook(self._event)
        import safetensors.torch as weights

        # Written by compiled code, which raises no audit event.
        save = weights.save_file

        def saved(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
            self._strike(str(filename), "save_file")
            save(tensors, filename, *args, **kwargs)

        for module in list(sys.modules.values()):
            for name in [name for name, value in list(vars(module).items()) if value is save]:
                setattr(module, name, saved)

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | os.PathLike | bytes):
                self._strike(os.fsdecode(path), event)
        elif event in _CHANGES:
            self._strike(os.fsdecode(args[0]) if not isinstance(args[0], int) else "", event)

    def _strike(self, path: str, event: str) -> None:
        if not os.path.abspath(path).startswith(str(self.root)):
            return
        number = len(self.seen)
        self.seen.append(f"{event} {os.path.relpath(path, self.root)}")
        if number != self.at:
            return
        if self.mode == "full":
            raise OSError(errno.ENOSPC, "No space left on device", path)
        if self.mode == "torn" and event in ("open", "save_file"):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, b"{")
            os.close(descriptor)
        os._exit(KILLED)


def forked(work: Callable[[], int], log: Path) -> int:
    """The exit status of `work` in a fork; what it prints goes to `log`."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    status = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = work()
    except SystemExit as error:
        status = _code(error)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _code(error: SystemExit) -> int:
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def command(*words: str) -> Callable[[], int]:
    """A command line of LatentWire as work for a fork."""

    def work() -> int:
        from latentwire.cli import main

        sys.argv = ["latentwire", *words]
        main()
        return 0

    return work


def results(runs: Path) -> dict[str, Any]:
    """What a finished study holds that must not depend on what happened on the way, by stage and file."""
    kept: dict[str, Any] = {}
    for record in sorted(runs.glob("*/*/*/run.json")):
        folder, stage = record.parent, record.parent.parent.name
        if json.loads(record.read_text())["status"] != "done":
            continue
        for path in sorted(folder.rglob("*")):
            name = f"{stage}/{path.relative_to(folder)}"
            if path.name == "diagnostics.jsonl":
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                kept[name] = [
                    {key: value for key, value in line.items() if not any(word in key for word in _TIMES)}
                    for line in lines
                ]
            elif path.suffix == ".safetensors" or path.name in RESULTS or path.parent.name == "samples":
                kept[name] = path.read_bytes()
    return kept


def leftovers(runs: Path) -> list[str]:
    """Files and folders that only an unfinished write leaves."""
    return sorted(
        str(path.relative_to(runs))
        for path in runs.rglob("*")
        if path.name.startswith(".") or path.suffix in (".part", ".tmp")
    )


@dataclass(frozen=True)
class Strike:
    """One attempt that was ended, and what the same command came to afterwards. problem: "" if all is well."""

    at: int
    mode: Mode
    operation: str
    problem: str


def strikes(words: list[str], folder: Path, every: int, modes: tuple[Mode, ...] = MODES) -> Iterator[Strike]:
    """Strike at every `every`-th file operation of the command `words`, and run it again.

    Args:
        words: the command line, with `RUNS` where the folder of runs stands.
        folder: an empty folder to work in.
        every: 1 strikes at each operation.
        modes: how to strike.

    Yields:
        One `Strike` for each operation and mode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole"
    wanted_status = forked(_watched(words, whole, None, "kill", folder / "operations"), folder / "log")
    assert wanted_status == 0, (folder / "log").read_text()
    wanted = results(whole)
    assert wanted, "the command left no results to compare"
    operations = json.loads((folder / "operations").read_text())
    for at in range(0, len(operations), every):
        for mode in modes:
            runs = folder / f"{mode}-{at}"
            problem = _once(words, runs, at, mode, wanted, folder / "log")
            yield Strike(at, mode, operations[at], problem)
            shutil.rmtree(runs, ignore_errors=True)


def _watched(words: list[str], runs: Path, at: int | None, mode: Mode, out: Path | None) -> Callable[[], int]:
    def work() -> int:
        disk = Disk(runs, at, mode)
        runs.mkdir(parents=True, exist_ok=True)
        disk.watch()
        status = 0
        try:
            status = command(*[str(runs) if word == "RUNS" else word for word in words])()
        except SystemExit as error:
            status = _code(error)
        if out is not None:
            out.write_text(json.dumps(disk.seen))
        return status

    return work


def _once(words: list[str], runs: Path, at: int, mode: Mode, wanted: dict[str, Any], log: Path) -> str:
    status = forked(_watched(words, runs, at, mode, None), log)
    said = log.read_text()
    if mode == "full" and status not in (0, 1, 2):
        return f"a full disk ends in status {status}: {said[-400:]}"
    if mode == "full" and ("Traceback" in said or "failed with" in said):
        return f"a full disk ends in a traceback: {said[-400:]}"
    again = forked(command(*[str(runs) if word == "RUNS" else word for word in words]), log)
    if again != 0:
        return f"the same command ends in status {again}: {log.read_text()[-600:]}"
    found = results(runs)
    changed = [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
    if changed:
        return f"other results: {', '.join(changed[:4])}"
    return f"left behind: {', '.join(left[:4])}" if (left := leftovers(runs)) else ""


def main() -> None:
    """Run the harness whole and print what it found."""
    from tests.faults.commands import COMMANDS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(COMMANDS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    asked = parser.parse_args()
    failed = 0
    for name in asked.names:
        with tempfile.TemporaryDirectory() as folder:
            words = COMMANDS[name](Path(folder))
            count = problems = 0
            for strike in strikes(words, Path(folder) / "runs", asked.every, tuple(asked.modes)):
                count += 1
                if strike.problem:
                    problems += 1
                    where = f"{strike.mode} at {strike.at} ({strike.operation})"
                    print(f"{name} {where}: {strike.problem}", flush=True)
            print(f"{name}: {count} strikes, {problems} problems", flush=True)
            failed += problems
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

"""Ends a command at any one of its file operations, then asks whether it still reaches the same results.

Everything is a fork of one warm process, so that a thousand attempts take minutes. Run whole:

    python -m tests.faults.crashes

The modes:

- `kill`: the process is gone before the operation. What it leaves is what is on the disk at that instant, so that
  one run of the command gives all of these states: a copy of its folder is taken before every operation.
- `torn`: the same, and the file that was about to be written has its first byte and no more.
- `full`: from this operation on the disk is full, for everything that would be written.
- `term`: SIGTERM arrives at the operation.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.faults.watched_disk import WRITES, Disk, operation

Mode = Literal["kill", "torn", "full", "term"]
MODES: tuple[Mode, ...] = ("kill", "torn", "full", "term")
Work = Callable[[Path], int]
"""A command: it writes into the folder it is given and returns its exit status."""
HANGS = 600.0
"""Seconds after which a command is taken to hang."""
RESULTS = ("outcomes.jsonl", "metrics.json")
_PASSING = ("seconds", "memory", "gib", "time")
"""What in a line of diagnostics is measured anew each time."""


@dataclass(frozen=True)
class Strike:
    """One attempt that was ended, and what the same command came to afterwards.

    Attributes:
        at: the number of the file operation.
        mode: how it was ended.
        operation: what the operation was.
        problem: what is wrong; empty if all is well.
    """

    at: int
    mode: Mode
    operation: str
    problem: str

    def __str__(self) -> str:
        return f"{self.mode} at {self.at} ({self.operation}): {self.problem}"


def strikes(
    work: Work,
    results: Callable[[Path], dict[str, Any]],
    folder: Path,
    choose: Callable[[Sequence[tuple[int, Mode]]], Sequence[tuple[int, Mode]]] = lambda every: every,
) -> Iterator[Strike]:
    """End a command at its file operations, and run it again each time.

    Args:
        work: the command.
        results: what of a folder must not depend on what happened on the way.
        folder: an empty folder to work in.
        choose: takes all pairs of operation and mode, and returns those to try; by default all.

    Yields:
        One `Strike` for each chosen pair.
    """
    place, log = folder / "place", folder / "log"
    place.mkdir(parents=True)
    warm_up()
    seen = _images(work, place, folder)
    wanted = results(place)
    assert wanted, "the command left no results to compare"
    images = folder / "images"
    every: list[tuple[int, Mode]] = [
        (at, mode)
        for at, what in enumerate(seen)
        for mode in MODES
        if mode != "torn" or (operation(what) in WRITES and not (images / str(at) / _path(what)).is_dir())
    ]
    for at, mode in choose(every):
        problem = ""
        if mode in ("kill", "torn"):
            _put(images / str(at), place)
            if mode == "torn":
                _tear(place / _path(seen[at]), operation(seen[at]))
        else:
            _put(None, place)
            problem = _ended(work, Disk(place, at, mode), log)
        yield Strike(at, mode, seen[at], problem or _again(work, results, place, wanted, log))


def warm_up() -> None:
    """Import what commands import, so that forks need not; nothing is computed, since forks lose threads."""
    import latentwire.cli
    import latentwire.report.page
    import latentwire.studies.runner
    import latentwire.training.finetuning.finetune
    import latentwire.training.wire.train  # noqa: F401

    gc.collect()
    gc.freeze()  # what is imported need not be looked through in every fork


def forked(work: Callable[[], int], log: Path) -> int:
    """The exit status of `work` in a fork, negative for a signal or if it hangs; what it prints goes to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        deadline = time.monotonic() + HANGS
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return -signal.SIGKILL
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(ended[1])
    status = 70
    try:
        _leave_out_what_touches_no_file()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        status = work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _leave_out_what_touches_no_file() -> None:
    """Two checks of a model that take half the time of such a small run."""
    from latentwire.lm.loading import aligned_memory
    from latentwire.training.finetuning import finetune

    aligned_memory.align = lambda *_: None
    finetune._Finetuning.audit = lambda *_: None


def command(*words: str) -> int:
    """A command line of LatentWire, carried out in this process; returns its exit status."""
    from latentwire.cli import main

    sys.argv = ["latentwire", *words]
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def study_results(runs: Path) -> dict[str, Any]:
    """Weights, metrics, outcomes, samples and diagnostics of a study's finished runs, by stage and file."""
    kept: dict[str, Any] = {}
    for record in sorted(runs.glob("*/*/*/run.json")):
        folder, stage = record.parent, record.parent.parent.name
        if record.parent.name.startswith("."):
            continue
        kept[f"runs of {stage}"] = kept.get(f"runs of {stage}", 0) + 1
        if json.loads(record.read_text())["status"] != "done":
            continue
        for path in sorted(folder.rglob("*")):
            name = f"{stage}/{path.relative_to(folder)}"
            if path.name == "diagnostics.jsonl":
                kept[name] = [_lasting(json.loads(line)) for line in path.read_text().splitlines()]
            elif path.suffix == ".safetensors" or path.name in RESULTS or path.parent.name == "samples":
                kept[name] = path.read_bytes()
    return kept


def folder_results(folder: Path) -> dict[str, Any]:
    """All files of a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _lasting(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not any(word in key for word in _PASSING)}


def leftovers(folder: Path) -> list[str]:
    """Files and folders that only an unfinished write leaves."""
    hidden = [path for path in folder.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    return sorted(str(path.relative_to(folder)) for path in hidden)


def _images(work: Work, place: Path, folder: Path) -> list[str]:
    """The file operations of a whole run; the state of its folder before each of them is kept in `images`."""
    (folder / "images").mkdir()
    disk = Disk(place, copies=folder / "images")

    def watched() -> int:
        disk.watch()
        status = work(place)
        (folder / "operations").write_text(json.dumps(disk.seen))
        return status

    assert forked(watched, folder / "log") == 0, (folder / "log").read_text()
    seen: list[str] = json.loads((folder / "operations").read_text())
    return seen


def _path(what: str) -> str:
    """The file or folder of an operation; compiled code is seen by the folder that it writes to."""
    return what.split(" ", 1)[1]


def _put(image: Path | None, place: Path) -> None:
    shutil.rmtree(place)
    if image is None:
        place.mkdir()
    else:
        shutil.copytree(image, place, symlinks=True)


def _tear(path: Path, how: str) -> None:
    """What a kill in the middle of writing leaves: the first byte, of a new file or after what is there."""
    with path.open("ab" if how == "append" else "wb") as file:
        file.write(b"{")


def _ended(work: Work, disk: Disk, log: Path) -> str:
    """What is wrong with how a command ends on a full disk or by SIGTERM."""

    def watched() -> int:
        disk.watch()
        return work(disk.root)

    status, said = forked(watched, log), log.read_text()
    wanted = (128 + signal.SIGTERM,) if disk.mode == "term" else (0, 1, 2)
    if status not in wanted:
        return f"{disk.mode} ends in status {status}: {said[-600:]}"
    if "Traceback" in said or "failed with" in said:
        return f"{disk.mode} ends in no sentence: {said[-600:]}"
    if status in (1, 2) and said.count("latentwire: ") != 1:
        return f"{disk.mode} ends in no sentence, or several: {said[-600:]}"
    return ""


def _again(
    work: Work, results: Callable[[Path], dict[str, Any]], place: Path, wanted: dict[str, Any], log: Path
) -> str:
    """What is wrong with what the same command comes to afterwards."""
    status = forked(lambda: work(place), log)
    if status != 0:
        return f"the same command ends in status {status}: {log.read_text()[-600:]}"
    found = results(place)
    if changed := [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]:
        return f"other results: {', '.join(changed[:4])}"
    return f"left behind: {', '.join(left[:4])}" if (left := leftovers(place)) else ""


def main() -> None:
    """Try every operation of every command, and print what was found."""
    import argparse
    import tempfile

    os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is loaded: a fork loses threads, and would wait for them
    from tests.faults.commands import COMMANDS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(COMMANDS), help=", ".join(COMMANDS))
    parser.add_argument("--every", type=int, default=1, help="only one attempt of N")
    asked = parser.parse_args()

    def choose(every: Sequence[tuple[int, Mode]]) -> Sequence[tuple[int, Mode]]:
        # In any order, so that a part of the whole is a fair sample of it.
        return random.Random(17).sample(every, len(every) // asked.every)

    failed = 0
    for name in asked.names:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            struck = COMMANDS[name](Path(folder))
            counts: dict[str, int] = {}
            problems = 0
            for strike in strikes(struck.work, struck.results, Path(folder) / "struck", choose):
                counts[strike.mode] = counts.get(strike.mode, 0) + 1
                if sum(counts.values()) % 50 == 0:
                    print(f"{name}: {counts} so far", flush=True)
                if strike.problem:
                    problems += 1
                    print(f"{name} {strike}", flush=True)
            print(f"{name}: {counts}, {problems} problems, {time.monotonic() - started:.0f} s", flush=True)
            failed += problems
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

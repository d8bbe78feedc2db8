"""Launches for the tests: a rehearsal here with a study that takes no time, and a transport with faults."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from latentwire.launching import launcher
from latentwire.launching.follow import Following
from latentwire.launching.launch_record import Launch, LaunchPlan
from latentwire.launching.payload import Payload, Piece
from latentwire.launching.targets import SshTarget
from latentwire.launching.transport import Answer, Here, Transport, Unreachable

SOURCE = Path(launcher.__file__).parents[2]
STAGES = ("first", "second", "third")

PROGRAM = '''
"""Stands for `latentwire run`: real run folders, made in no time. Files in its folder say how it goes wrong."""
import os, signal, sys, time
from pathlib import Path

sys.path.insert(0, {source!r})
from latentwire.runs.store import Record, Run, runs

root, here = Path(sys.argv[sys.argv.index("--runs") + 1]), Path.cwd()
with (here / "started").open("a") as file:
    file.write("x")


def once(name):
    """Whether the fault `name` is to happen now; it happens once."""
    try:
        (here / name).rename(here / (name + ".over"))
    except OSError:
        return False
    return True


print("the token is", os.environ.get("HF_TOKEN"), flush=True)
if once("trace"):
    raise RuntimeError("something broke")
for number, stage in enumerate({stages!r}):
    there = [run for run in runs(root, "quick", stage)]
    if there and there[-1].status == "done":
        continue
    run = there[-1] if there else Run.create(root, Record(
        run="", study="quick", stage=stage, kind="evaluate", identity=stage, configuration={{}}, seeds={{}},
        inputs={{}}, parents={{}}, versions={{}}, git=None, machine={{}}))
    with run.work():
        (run.folder / "log.txt").write_text(f"working on {{stage}}\\n")
        (run.folder / "metrics.json").write_text('{{"stage": "%s"}}' % stage)
        if number == 1:
            while (here / "wait").exists():
                time.sleep(0.02)
            if once("kill"):
                os.killpg(0, signal.SIGKILL)
            if once("hang"):
                time.sleep(600)
        (run.folder / "outcomes.jsonl").write_bytes(bytes(range(256)) * 4096)
        run.finish({{}})
    print("done with", stage, flush=True)
if (here / "gate").exists():
    sys.exit("latentwire: the gate 'kept' did not hold.")
'''


@dataclass
class Faulty:
    """A transport that fails as it is told.

    Attributes:
        cut: After how many bytes each of the next fetches is cut off.
        spoil: How many of the next fetches have a wrong byte.
        dead: Whether nothing answers.
    """

    inner: Transport
    cut: list[int] = field(default_factory=list)
    cut_sending: list[int] = field(default_factory=list)
    spoil: int = 0
    dead: bool = False
    received: int = 0
    name: str = "a machine"

    def run(
        self,
        script: str,
        *,
        give: IO[bytes] | None = None,
        take: Callable[[bytes], None] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """See `Transport.run`."""
        if self.dead:
            raise Unreachable("no answer")
        if give is not None and "depot.py take" in script and self.cut_sending:
            self.inner.run(script, give=io.BytesIO(give.read(self.cut_sending.pop())), take=take, timeout=timeout)
            raise Unreachable("cut off")
        if take is None:
            return self.inner.run(script, give=give, timeout=timeout)
        left = self.cut.pop() if self.cut else None
        spoiled = self.spoil > 0
        self.spoil -= spoiled

        def passed(piece: bytes) -> None:
            nonlocal left, spoiled
            if left is not None:
                piece, over = piece[:left], len(piece) > left
                left -= len(piece)
            if spoiled and piece:
                piece, spoiled = bytes([piece[0] ^ 1]) + piece[1:], False
            self.received += len(piece)
            take(piece)
            if left is not None and over:
                raise Unreachable("cut off")

        return self.inner.run(script, give=give, take=passed, timeout=timeout)


@dataclass
class Rehearsal:
    """A home and a far folder, and what is launched between them."""

    folder: Path

    def __post_init__(self) -> None:
        self.home, self.far, self.runs = self.folder / "home", self.folder / "far", self.folder / "home" / "runs"
        self.home.mkdir()
        self.far.mkdir()
        (self.folder / "program.py").write_text(PROGRAM.format(source=str(SOURCE), stages=STAGES))
        binary = self.folder / "environment" / "bin"
        binary.mkdir(parents=True)
        # An environment whose Python carries the study out without PyTorch.
        (binary / "python").write_text(
            f'#!/bin/sh\n[ "$2" = latentwire.cli ] && exec {sys.executable} {self.folder}/program.py "$@"\n'
            f'exec {sys.executable} "$@"\n'
        )
        (binary / "python").chmod(0o755)
        self.transport = Faulty(Here(self.far))
        self.work = self.far / "place" / "work"
        self.work.mkdir(parents=True)

    def plan(self, **changes: Any) -> LaunchPlan:
        """The plan, quick to look and to give up."""
        usual = {
            "study": "quickstart",
            "on": f"here:{self.far}",
            "folder": str(self.far / "place"),
            "environment": str(self.folder / "environment"),
            "every": 0.05,
            "grace_seconds": 2,
        }
        return LaunchPlan(**(usual | changes))

    def payload(self) -> Payload:
        """A study's file and a package of one file."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("latentwire/nothing.txt")
            archive.addfile(entry, io.BytesIO(b""))
        pieces = [Piece.of("work/study.yaml", b"name: quick\n"), Piece.of("package.tar.gz", buffer.getvalue())]
        pieces.append(Piece.of("work/data.bin", bytes(range(256)) * 1024))
        return Payload("quick", tuple(pieces), (), "none", ())

    def following(self, **changes: Any) -> Following:
        """A launcher that has not begun."""
        begun = Launch.begin(self.home / "launches", self.plan(**changes), self.payload())
        return Following(begun, SshTarget(self.transport), self.payload(), self.runs)

    def launch(self, **changes: Any) -> int:
        """Launch and follow to the end."""
        return self.following(**changes).go()

    @property
    def launched(self) -> Launch:
        """The launch's record as it is on disk."""
        (path,) = (self.home / "launches").glob("*/launch.json")
        return Launch.read(path.parent)

    def fault(self, name: str) -> None:
        """Let the study over there meet a fault."""
        (self.work / name).touch()

    def starts(self) -> int:
        """How often the study was started over there."""
        return len((self.work / "started").read_text())

    def alarms(self) -> str:
        """All alarms, a line each."""
        return "\n".join(event.what for event in self.launched.record.events if event.alarm)


def processes(word: str) -> list[str]:
    """Command lines of processes, other than this one, that name `word`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if word in line:
                found.append(line)
    return found


def may_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True, capture_output=True
        )
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True

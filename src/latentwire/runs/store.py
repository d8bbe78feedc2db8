"""The run folder: one stage carried out, in a folder that explains itself.

    runs/<study>/<stage>/<UTC yyyymmdd-hhmmss>-<4 hex>/

`run.json` is complete but for results before any work starts, and is always the old file or the new
one. Whoever works in a folder holds a lock on it; the lock of a killed process is gone, and so a run
that says `running` with nobody holding its lock was interrupted.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.runs.identity import file_sha256

Status = Literal["running", "done", "rejected", "failed", "interrupted"]
"""rejected: carried out to its end, with all results, but what it made did not hold what was asked of it."""
RECORD, LOCK, LOG = "run.json", ".lock", "log.txt"


class Input(BaseModel):
    """Something that a run read: where it was, and the SHA-256 of its content."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: str


class Parent(BaseModel):
    """A run whose weights another one starts from."""

    model_config = ConfigDict(frozen=True)

    run: str
    identity: str


class Attempt(BaseModel):
    """One go at a run, UTC. ended is None while it goes on and for ever after a kill."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: str
    ended: str | None = None


class Record(BaseModel):
    """`run.json`. results: None until done; artifacts: SHA-256 by path inside the folder."""

    model_config = ConfigDict(frozen=True)

    run: str
    study: str
    stage: str
    kind: str
    status: Status = "running"
    identity: str
    configuration: dict[str, Any]
    seeds: dict[str, int]
    inputs: dict[str, Input]
    parents: dict[str, Parent]
    versions: dict[str, str]
    git: dict[str, str | bool] | None
    machine: dict[str, str | int]
    times: tuple[Attempt, ...] = ()
    results: dict[str, Any] | None = None
    artifacts: dict[str, str] = {}
    error: str | None = None


@dataclass
class Run:
    """A run's folder and what its `run.json` says."""

    folder: Path
    record: Record

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in `folder`.

        Raises:
            UserError: there is none, or its `run.json` is not one.
        """
        path = folder / RECORD
        try:
            return cls(folder, Record.model_validate_json(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"run: found no {RECORD} in {folder}, expected a run's folder.") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"{path}: {field}: {first['msg']}.") from error

    @classmethod
    def create(cls, root: Path, record: Record) -> Run:
        """A new folder with its `run.json`; it appears whole.

        Raises:
            UserError: the folder cannot be written.
        """
        parent = root / record.study / record.stage
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        unfinished = parent / f".{name}"
        try:
            unfinished.mkdir(parents=True)
            run = cls(unfinished, record.model_copy(update={"run": f"{record.study}/{record.stage}/{name}"}))
            run.write()
            run.folder = unfinished.rename(parent / name)
        except OSError as error:
            raise UserError(f"runs: {parent} cannot be written: {error.strerror}.") from error
        return run

    @property
    def status(self) -> Status:
        """What `run.json` says, but `interrupted` for a running one that nobody works on."""
        return "interrupted" if self.record.status == "running" and not self._locked() else self.record.status

    @property
    def seconds(self) -> float | None:
        """How long the attempts took that came to an end."""
        ended = [each for each in self.record.times if each.ended]
        spans = [datetime.fromisoformat(a.ended or "") - datetime.fromisoformat(a.started) for a in ended]
        return sum(span.total_seconds() for span in spans) if spans else None

    def write(self, **changes: Any) -> None:
        """Change the record and write `run.json`."""
        self.record = self.record.model_copy(update=changes)
        text = json.dumps(self.record.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_atomically(self.folder / RECORD, text + "\n")

    @contextmanager
    def work(self) -> Iterator[None]:
        """Hold the run's lock and count an attempt. How it ends is the caller's to write, but for a
        stop from outside (Ctrl-C), which leaves the run interrupted.

        Raises:
            UserError: another process works in this folder.
        """
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                pid = self.record.times[-1].pid if self.record.times else "another"
                raise UserError(f"run: {self.folder} is being worked on by process {pid}.") from error
            attempt = Attempt(pid=os.getpid(), started=_now())
            earlier = self.record.times
            self.write(status="running", times=(*earlier, attempt), results=None, artifacts={}, error=None)
            try:
                yield
            except Exception:
                raise
            except BaseException:
                self.write(status="interrupted")
                raise
            finally:
                self.write(times=(*earlier, attempt.model_copy(update={"ended": _now()})))

    def finish(self, results: dict[str, Any], *, rejected: bool = False) -> None:
        """Done, or rejected: results and the hashes of what was written."""
        self.write(status="rejected" if rejected else "done", results=results, artifacts=self._artifacts())

    def fail(self, error: str) -> None:
        """Failed, with one sentence that says why."""
        self.write(status="failed", error=error)

    def changed_artifacts(self, under: str) -> list[str]:
        """Artifacts whose path starts with `under` and whose files are gone or not as they were."""
        recorded = {path: sha for path, sha in self.record.artifacts.items() if path.startswith(under)}
        files = {path: self.folder / path for path in recorded}
        return [path for path, file in files.items() if not file.is_file() or file_sha256(file) != recorded[path]]

    def _artifacts(self) -> dict[str, str]:
        # `last` is what an interrupted training goes on from, and nobody's result.
        found = (path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file())
        kept = [path for path in found if path.name not in (RECORD, LOG) and not any(map(_passing, path.parts))]
        return {path.as_posix(): file_sha256(self.folder / path) for path in kept}

    def _locked(self) -> bool:
        try:
            with (self.folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False


def runs(root: Path, study: str = "*", stage: str = "*") -> list[Run]:
    """The runs of a study's stage, or of all, oldest first."""
    folders = (path.parent for path in root.glob(f"{study}/{stage}/*/{RECORD}"))
    kept = (folder for folder in folders if not folder.name.startswith("."))
    return [Run.read(folder) for folder in sorted(kept, key=lambda folder: (folder.name, folder))]


def find(root: Path, name: str) -> Run:
    """The run that `name` names: a folder, `study/stage/run`, or `study/stage` for its newest.

    Raises:
        UserError: there is no such run.
    """
    for folder in (Path(name), root / name):
        if (folder / RECORD).is_file():
            return Run.read(folder)
    for folder in (root / name, Path(name)):
        newest = sorted(path.parent for path in folder.glob(f"*/{RECORD}") if not path.parent.name.startswith("."))
        if newest:
            return Run.read(newest[-1])
    known = sorted({f"{run.record.study}/{run.record.stage}" for run in runs(root)})
    there = f"; there are {', '.join(known)}" if known else ""
    raise UserError(f"run: found no run {name!r} in {root}, expected a run's folder or STUDY/STAGE{there}.")


def _passing(part: str) -> bool:
    return part == "last" or part.startswith(".")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

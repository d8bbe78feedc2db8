"""The run folder: one stage carried out, in a folder that explains itself.

    runs/<study>/<stage>/<UTC yyyymmdd-hhmmss>-<4 hex>/

`run.json` is complete except for results before any work starts, and a kill leaves the old file or the new
one. A process that works in a folder holds a lock on it. The lock of a killed process is gone: a run that
says `running` while nobody holds its lock was interrupted.
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
from latentwire.files import beside, tidy, write_atomically
from latentwire.runs import seals
from latentwire.runs.identity import file_sha256

Status = Literal["running", "done", "rejected", "failed", "interrupted"]
"""`rejected`: carried out to its end, with all results, but a gate of the stage did not hold."""
RECORD, LOCK, LOG = "run.json", ".lock", "log.txt"
OUTCOMES, METRICS = "outcomes.jsonl", "metrics.json"
ENDED: tuple[Status, ...] = ("done", "rejected")
"""The statuses of a run that has results."""


class Input(BaseModel):
    """Something that a run read: its path and the SHA-256 of its content."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: str


class Parent(BaseModel):
    """A run that another one started from."""

    model_config = ConfigDict(frozen=True)

    run: str
    identity: str


class Attempt(BaseModel):
    """One attempt at a run, UTC. `ended` is None while it is under way, and stays None after a kill."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: str
    ended: str | None = None


class StudyFile(BaseModel):
    """The study that a run belongs to, as it was read.

    Attributes:
        path: The file, or the template's name.
        text: Its content.
        changes: What `--set` changed, in order.
        preset: What `--preset` chose.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    text: str
    changes: tuple[str, ...] = ()
    preset: str | None = None


class LogHash(BaseModel):
    """The log as it was when the run ended; what is appended later does not count."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Record(BaseModel):
    """`run.json`, which `runs.seals` gives a hash of its own.

    Attributes:
        results: None until the run is done.
        artifacts: SHA-256 of every file it left, by path inside the folder.
        log: the log's hash when the run ended.
        command: the command line as given.
        study_file: the study file as read; None for a run of no study.
    """

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
    log: LogHash | None = None
    error: str | None = None
    command: tuple[str, ...] = ()
    study_file: StudyFile | None = None


@dataclass
class Run:
    """A run's folder and what its `run.json` says."""

    folder: Path
    record: Record

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in `folder`.

        Raises:
            UserError: There is none, or its `run.json` cannot be read.
        """
        path = folder / RECORD
        try:
            return cls(folder, Record.model_validate_json(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"run: found no {RECORD} in {folder}, expected a run's folder.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: found bytes that are not UTF-8, expected a run's record.") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"{path}: {field}: {first['msg']}.") from error

    @classmethod
    def create(cls, root: Path, record: Record) -> Run:
        """A new folder, which appears together with its `run.json`.

        Raises:
            UserError: The folder cannot be written.
        """
        parent = root / record.study / record.stage
        name = _new_name(parent)
        unfinished = beside(parent / name, "partial")
        tidy(parent / "*")
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
        """What `run.json` says, or `interrupted` for a run that says `running` while nobody works on it."""
        return "interrupted" if self.record.status == "running" and not self._locked() else self.record.status

    @property
    def seconds(self) -> float | None:
        """Duration of all attempts that ended; None if none did."""
        ended = [attempt for attempt in self.record.times if attempt.ended]
        spans = [datetime.fromisoformat(a.ended or "") - datetime.fromisoformat(a.started) for a in ended]
        return sum(span.total_seconds() for span in spans) if spans else None

    def write(self, **changes: Any) -> None:
        """Change the record and write `run.json`."""
        self.record = self.record.model_copy(update=changes)
        write_atomically(self.folder / RECORD, seals.sealed(self.record.model_dump(mode="json")))

    @contextmanager
    def work(self) -> Iterator[None]:
        """Hold the run's lock and record an attempt.

        The caller records how it ends (`finish` or `fail`); a stop from outside (Ctrl-C) leaves it interrupted.

        Raises:
            UserError: Another process works in this folder.
        """
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                pid = self.record.times[-1].pid if self.record.times else "another"
                raise UserError(f"run: {self.folder} is being worked on by process {pid}.") from error
            attempt = Attempt(pid=os.getpid(), started=_now())
            earlier = self.record.times
            self.write(
                status="running", times=(*earlier, attempt), results=None, artifacts={}, log=None, error=None
            )
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
        """Record results and the hashes of all files: the run is done, or rejected."""
        log = self.folder / LOG
        told = LogHash(bytes=log.stat().st_size, sha256=file_sha256(log)) if log.is_file() else None
        status: Status = "rejected" if rejected else "done"
        self.write(status=status, results=results, artifacts=self._artifacts(), log=told)

    def fail(self, error: str) -> None:
        """Record that the run failed, with one sentence that says why."""
        self.write(status="failed", error=error)

    def check_results(self, *names: str) -> None:
        """Check the files that statistics are computed from against their hashes in `run.json`.

        Args:
            names: Which files, if they are there; outcomes and metrics by default.

        Raises:
            UserError: The run has ended, and one of them is gone or changed since then.
        """
        if self.record.status not in ENDED:
            return
        names = names or (OUTCOMES, METRICS)
        unknown = [name for name in names if name not in self.record.artifacts and (self.folder / name).exists()]
        for name in (*self.changed_artifacts(*names), *unknown):
            raise UserError(
                f"{self.folder / name}: found it changed since the run ended, expected the content that {RECORD} "
                f"has the hash of; carry the stage out again with --stage {self.record.stage} --fresh."
            )

    def metrics(self) -> dict[str, Any]:
        """What its `metrics.json` says; empty for a run that wrote none."""
        if METRICS not in self.record.artifacts:
            return {}
        metrics: dict[str, Any] = json.loads((self.folder / METRICS).read_text(encoding="utf-8"))
        return metrics

    def changed_artifacts(self, *under: str) -> list[str]:
        """Artifacts whose path starts with one of `under` and whose file is gone or has changed."""
        recorded = {path: sha for path, sha in self.record.artifacts.items() if path.startswith(under)}
        files = {path: self.folder / path for path in recorded}
        return [path for path, file in files.items() if not file.is_file() or file_sha256(file) != recorded[path]]

    def _artifacts(self) -> dict[str, str]:
        # `last` is what an interrupted training resumes from, and not a result.
        files = (path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file())
        kept = [path for path in files if path.name not in (RECORD, LOG) and not any(map(_passing, path.parts))]
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


@dataclass(frozen=True)
class Unreadable:
    """A run's folder whose `run.json` cannot be read, and the sentence that says why."""

    folder: Path
    problem: str


def runs(root: Path, study: str = "*", stage: str = "*") -> list[Run]:
    """The runs of a study's stage, or of all, oldest first, as far as they can be read."""
    return scan(root, study, stage)[0]


def scan(root: Path, study: str = "*", stage: str = "*") -> tuple[list[Run], list[Unreadable]]:
    """The runs of a study's stage, or of all, oldest first; and those that cannot be read."""
    readable: list[Run] = []
    unreadable: list[Unreadable] = []
    for folder in _folders(root, f"{study}/{stage}/*"):
        try:
            readable.append(Run.read(folder))
        except UserError as error:
            unreadable.append(Unreadable(folder, str(error)))
    return readable, unreadable


def find(root: Path, name: str) -> Run:
    """The run called `name`: a folder, `study/stage/run`, or `study/stage` for its newest that can be read.

    Raises:
        UserError: There is no such run, or it cannot be read.
    """
    for folder in (Path(name), root / name):
        try:
            there = (folder / RECORD).is_file()
        except (OSError, ValueError) as error:  # a name longer than a file system takes
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"run: {name[:60]!r} cannot be a folder ({reason}), expected a run's.") from error
        if there:
            return Run.read(folder)
    problem = ""
    for stage in (root / name, Path(name)):
        for folder in reversed(_folders(stage, "*")):
            try:
                return Run.read(folder)
            except UserError as error:
                problem = problem or str(error)
    if problem:
        raise UserError(problem)
    stages = sorted({"/".join(folder.relative_to(root).parts[:2]) for folder in _folders(root, "*/*/*")})
    known = f"; there are {', '.join(stages)}" if stages else ""
    raise UserError(f"run: found no run {name!r} in {root}, expected a run's folder or STUDY/STAGE{known}.")


def _new_name(stage: Path) -> str:
    """A name that no run of the stage has: the second in which it begins, and a random word."""
    while True:
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        if not (stage / name).exists():
            return name


def _folders(place: Path, pattern: str) -> list[Path]:
    """The runs' folders that match a pattern below a place, oldest first; unfinished ones are hidden."""
    folders = [path.parent for path in place.glob(f"{pattern}/{RECORD}") if not path.parent.name.startswith(".")]
    # A name is a second and a random word: what began within one second is in the order of its stages' names.
    return sorted(folders, key=lambda folder: (folder.name[:15], folder))


def _passing(part: str) -> bool:
    return part == "last" or part.startswith(".")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""The launch's folder: what was asked, what happened, and a lock that says who follows it.

launches/<study>-<8 hex>/
  launch.json     target, options, events, alarms, how it ended
  live/           runs under way over there, as far as they have arrived
  log.txt         what the other machine's worker printed
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.launching.payload import Payload

RECORD, FOLLOWED = "launch.json", ".followed"
State = Literal["begun", "started", "ended"]
"""`begun`: nothing runs there yet. `ended`: everything is home, or given up; `LaunchRecord.outcome` says which."""


class LaunchPlan(BaseModel):
    """What was asked for. It never holds the value of a forwarded variable, only its name.

    Attributes:
        folder: The launch's folder on the machine; relative to the home folder there.
        environment: A virtual environment that exists there; None makes one.
        forwarded: Names of environment variables that the run gets from the launcher's own.
        hours: The budget; None for none.
        down: A command, run here, that gives the machine back.
        check_down: A command, run here, that succeeds once it is gone; None asks the machine itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    on: str
    arguments: tuple[str, ...] = ()
    folder: str = ""
    python: str | None = None
    environment: str | None = None
    forwarded: tuple[str, ...] = ()
    ssh_options: tuple[str, ...] = ()
    settings: dict[str, str] = {}
    results: str | None = None
    hours: float | None = None
    restart: int = 0
    down: str | None = None
    check_down: str | None = None
    alarm: str | None = None
    stall_minutes: float = 20
    patience_minutes: float = 15
    grace_seconds: float = 120
    every: float = 15


class Event(BaseModel):
    """Something that happened, UTC; `alarm` for what somebody should see."""

    model_config = ConfigDict(frozen=True)

    at: str
    what: str
    alarm: bool = False


class LaunchRecord(BaseModel):
    """`launch.json`.

    Attributes:
        identity: SHA-256 of the study and its inputs.
        created: UNIX seconds; the budget counts from here.
        python: The interpreter found there.
        home: The absolute folder there.
        environment: A hash of the requirements, which names the environment made there.
        changes: `--set` changes with the paths that they have there.
        job: What a scheduler or a cloud calls it.
        starts: How often a worker was started.
        outcome: One sentence, once it has ended.
        status: The exit status of the study, once known.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    plan: LaunchPlan
    identity: str
    created: float
    state: State = "begun"
    python: str | None = None
    home: str | None = None
    environment: str = ""
    changes: tuple[str, ...] = ()
    job: str | None = None
    starts: int = 0
    arrived: tuple[str, ...] = ()
    down: Literal["confirmed", "failed"] | None = None
    status: int | None = None
    outcome: str | None = None
    events: tuple[Event, ...] = ()


class Launch:
    """A launch's folder and its record."""

    def __init__(self, folder: Path, record: LaunchRecord) -> None:
        self.folder, self.record = folder, record

    @classmethod
    def read(cls, folder: Path) -> Launch:
        """The launch in `folder`. Raises `UserError` if there is none."""
        path = folder / RECORD
        try:
            return cls(folder, LaunchRecord.model_validate_json(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"launch: found no {RECORD} in {folder}, expected a launch's folder.") from error
        except ValidationError as error:
            raise UserError(f"launch: {path} cannot be read: {error.errors()[0]['msg']}.") from error

    @classmethod
    def begin(cls, root: Path, plan: LaunchPlan, payload: Payload) -> Launch:
        """The launch of this plan: the one that is there already, or a new folder.

        One that ended without being done begins again, with a new budget.
        """
        # How closely it is watched does not make it another launch; what runs there and where does.
        same = plan.model_dump(include={"study", "on", "arguments", "folder"})
        key = hashlib.sha256(json.dumps([same, payload.sha256], sort_keys=True).encode()).hexdigest()[:8]
        folder = root / f"{payload.study}-{key}"
        if (folder / RECORD).is_file():
            launch = cls.read(folder)
            launch.write(plan=plan)
            if launch.record.state == "ended" and launch.record.status != 0:
                again = {"starts": 0, "status": None, "outcome": None, "down": None, "job": None}
                launch.write(state="begun", created=time.time(), **again)
            return launch
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"launches: {folder} cannot be written ({error.strerror}).") from error
        record = LaunchRecord(
            name=folder.name,
            plan=plan,
            identity=payload.sha256,
            created=time.time(),
            environment=payload.environment,
            changes=payload.changes,
        )
        launch = cls(folder, record)
        launch.write()
        return launch

    def write(self, **changes: Any) -> None:
        """Change the record and write it."""
        self.record = self.record.model_copy(update=changes)
        write_atomically(self.folder / RECORD, self.record.model_dump_json(indent=1) + "\n")

    def note(self, what: str, *, alarm: bool = False) -> None:
        """Keep and print an event."""
        event = Event(at=datetime.now(UTC).isoformat(timespec="seconds"), what=what, alarm=alarm)
        self.write(events=(*self.record.events, event))
        print(f"{event.at[11:19]} {'ALARM: ' if alarm else ''}{what}", flush=True)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Hold the launch's lock. Raises `UserError` while another process follows it."""
        with (self.folder / FOLLOWED).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"launch: {self.folder} is being followed by another process.") from error
            yield

    @property
    def live(self) -> Path:
        """Where runs under way are mirrored."""
        return self.folder / "live"


def launches(root: Path) -> list[Launch]:
    """All launches below a folder, oldest first."""
    found = [Launch.read(path.parent) for path in root.glob(f"*/{RECORD}")]
    return sorted(found, key=lambda launch: launch.record.created)

"""Results come home: cut off half-way they go on there, and only what has its recorded hash gets its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from latentwire.errors import UserError
from latentwire.launching.depot import inside, sha256_of
from latentwire.launching.far_machine import FarMachine
from latentwire.launching.payload import Piece
from latentwire.launching.transport import Unreachable
from latentwire.runs.store import ENDED, LOCK, RECORD, Run
from latentwire.runs.store import runs as runs_of

RUNS = "runs"
_PART = ".part"
_TRIES = 3


class DamagedOnArrival(RuntimeError):
    """A file came with a wrong hash again and again."""


@dataclass
class Homecoming:
    """What brings a launch's results home.

    Attributes:
        runs: The folder of all runs, here. A run appears in it whole and verified, or not at all.
        live: The folder of runs that are under way there; they grow here as they grow there.
    """

    machine: FarMachine
    runs: Path
    live: Path

    def results(self, look: dict[str, Any], *, last: bool = False) -> Iterator[str]:
        """Fetch the runs that have ended there and are not here, and the study's summary.

        Args:
            look: How the launch stands.
            last: Whether nothing changes there any more. Before, a summary may be written anew while it travels.

        Yields:
            Each run that has arrived.

        Raises:
            Unreachable: The connection broke; what arrived stays, and the next call goes on from there.
            DamagedOnArrival: A file's hash was wrong three times.
            UserError: Another run has the same name here.
        """
        for run in look["runs"]:
            if run["status"] in ENDED and not self.here(run):
                self._bring(run["run"].removeprefix(f"{RUNS}/"), run["files"])
                yield run["run"].removeprefix(f"{RUNS}/")
        for file in look["study"]:
            there = self.runs / file["path"].removeprefix(f"{RUNS}/")
            if not there.is_file() or sha256_of(there) != file["sha256"]:
                self._table(file, there, last)

    def _table(self, file: dict[str, Any], place: Path, last: bool) -> None:
        try:
            self._files([file], {file["path"]: place}, tries=_TRIES if last else 1)
        except (DamagedOnArrival, Unreachable):
            if last:
                raise

    def here(self, run: dict[str, Any]) -> bool:
        """Whether a run that ended there is here, with the same record."""
        folder = inside(self.runs, run["run"].removeprefix(f"{RUNS}/"))
        record = next(file for file in run["files"] if file["path"].endswith(f"/{RECORD}"))
        if not (folder / RECORD).is_file() or self._unfinished(folder):
            return False
        if sha256_of(folder / RECORD) != record["sha256"]:
            raise UserError(f"runs: {folder} is another run than that of {self.machine.transport.name}.")
        return True

    def known(self, study: str, look: dict[str, Any]) -> list[Piece]:
        """Files of the runs that are here and not there: of each stage the newest that ended, or was cut short.

        So a study goes on where another machine, or this one, has left it. The record comes last: a run that is
        cut off on its way does not count there.
        """
        there = {run["run"] for run in look["runs"]}
        newest: dict[str, Run] = {}
        for run in runs_of(self.runs, study):
            stage = run.record.stage
            if run.status != "running" and (run.status in ENDED or stage not in newest):
                newest[stage] = run
        pieces = []
        for run in newest.values():
            name = f"{RUNS}/{run.folder.relative_to(self.runs).as_posix()}"
            if name not in there:
                files = [path for path in sorted(run.folder.rglob("*")) if path.is_file() and path.name != LOCK]
                files.sort(key=lambda path: path.name == RECORD)
                pieces += [Piece.of(f"{name}/{path.relative_to(run.folder).as_posix()}", path) for path in files]
        return pieces

    def unfinished(self, files: Sequence[dict[str, Any]]) -> list[str]:
        """Fetch runs that have not ended, whole, so that they can be resumed here or on another machine."""
        by_run: dict[str, list[dict[str, Any]]] = {}
        for file in files:
            by_run.setdefault("/".join(file["path"].split("/")[1:4]), []).append(file)
        for name, pieces in by_run.items():
            self._bring(name, pieces)
        return list(by_run)

    def _unfinished(self, folder: Path) -> bool:
        """Whether what is here is an unfinished copy that nobody works on."""
        return (folder / RECORD).is_file() and Run.read(folder).status == "interrupted"

    def mirror(self, look: dict[str, Any]) -> None:
        """Bring the growing files of runs under way up to date; those of ended runs go."""
        going = {run["run"].removeprefix(f"{RUNS}/"): run for run in look["runs"] if run["status"] not in ENDED}
        for record in list(self.live.glob(f"*/*/*/{RECORD}")):
            if record.parent.relative_to(self.live).as_posix() not in going:
                shutil.rmtree(record.parent)
        wanted: list[tuple[dict[str, Any], Path, int]] = []
        for name, run in going.items():
            folder = inside(self.live, name)
            folder.mkdir(parents=True, exist_ok=True)
            for file in run["files"]:
                place = inside(folder, Path(file["path"]).name)
                size = place.stat().st_size if place.is_file() else 0
                # Untouched where nothing has changed: `runs watch` reads from the files' times whether it moves.
                if place.name == RECORD and (not size or sha256_of(place) != file["sha256"]):
                    wanted.append((file, place, 0))
                elif place.name != RECORD and size != file["size"]:
                    wanted.append((file, place, size if size <= file["size"] else 0))
        if wanted:
            pieces = [(file["path"], at, file["size"] - at) for file, _, at in wanted]
            with _Writer([(place, at, file["size"] - at) for file, place, at in wanted]) as writer:
                self.machine.fetch(pieces, writer.take)

    def grow(self, path: str, place: Path, size: int) -> None:
        """Bring one growing file up to `size` bytes."""
        there = place.stat().st_size if place.is_file() else 0
        at = there if there <= size else 0
        if at < size:
            with _Writer([(place, at, size - at)]) as writer:
                self.machine.fetch([(path, at, size - at)], writer.take)

    def _bring(self, name: str, files: list[dict[str, Any]]) -> None:
        """A whole run into a hidden folder beside its place; verified there, it is moved."""
        place = inside(self.runs, name)
        arriving = place.with_name(f".{place.name}.arriving")
        cut = f"{RUNS}/{name}/"
        self._files(files, {file["path"]: inside(arriving, file["path"].removeprefix(cut)) for file in files})
        if json.loads((arriving / RECORD).read_text(encoding="utf-8"))["status"] in ENDED:
            run = Run.read(arriving)
            if changed := run.changed_artifacts():
                raise DamagedOnArrival(f"{name}: {changed[0]} is not what {RECORD} has the hash of")
        if self._unfinished(place):
            shutil.rmtree(place)
        if place.exists():
            raise UserError(f"runs: {place} is there already, expected no run of this name; move it.")
        arriving.rename(place)

    def _files(self, files: Sequence[dict[str, Any]], places: dict[str, Path], tries: int = _TRIES) -> None:
        """Fetch files until each has its hash; a wrong one is thrown away and fetched again."""
        left = [(file, places[file["path"]]) for file in files]
        for _ in range(tries):
            left = [(file, at) for file, at in left if not (at.is_file() and sha256_of(at) == file["sha256"])]
            if not left:
                return
            plans = []
            for file, at in left:
                at.parent.mkdir(parents=True, exist_ok=True)
                part = at.with_name(at.name + _PART)
                size = part.stat().st_size if part.is_file() else 0
                offset = size if size <= file["size"] else 0
                plans.append((part, offset, file["size"] - offset))
            asked = [(file["path"], plan[1], plan[2]) for (file, _), plan in zip(left, plans, strict=True)]
            with _Writer(plans) as writer:
                self.machine.fetch(asked, writer.take)
            for (file, at), (part, *_) in zip(left, plans, strict=True):
                if sha256_of(part) == file["sha256"]:
                    part.replace(at)
                else:
                    part.unlink()
        left = [(file, at) for file, at in left if not at.is_file()]
        if left:
            raise DamagedOnArrival(f"{left[0][0]['path']} arrived with a wrong hash {tries} times")


class _Writer:
    """Cuts a stream of bytes into files; each is written from its offset on."""

    def __init__(self, plans: Sequence[tuple[Path, int, int]]) -> None:
        self._plans = list(plans)
        self._file: IO[bytes] | None = None
        self._left = 0

    def __enter__(self) -> _Writer:
        self._next()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None and (self._left or self._plans):
            raise Unreachable("the connection ended before all bytes had come")

    def take(self, piece: bytes) -> None:
        while piece:
            if self._file is None or not self._left:
                raise Unreachable("more bytes came than were asked for")
            now, piece = piece[: self._left], piece[self._left :]
            self._file.write(now)
            self._left -= len(now)
            if not self._left:
                self._next()

    def _next(self) -> None:
        """Open the next file that is still to receive bytes."""
        while not self._left and self._plans:
            if self._file is not None:
                self._file.close()
            path, at, self._left = self._plans.pop(0)
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(at)
            self._file.seek(at)

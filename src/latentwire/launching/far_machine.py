"""A launch's place on another machine: what is asked there, sent there and fetched from there."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from latentwire.errors import UserError
from latentwire.launching.payload import Piece
from latentwire.launching.transport import PATH, Answer, Transport, Unreachable
from latentwire.launching.worker import AT_WORK

SCRIPTS = ("worker.py", "depot.py", "install.sh")
_HERE = Path(__file__).parent
_PLACES = f"{PATH.replace(':', ' ')} /opt/conda/bin /opt/miniconda3/bin /opt/python/bin /opt/homebrew/bin"
_LONG = 1800
"""Seconds of silence while something is hashed or unpacked there."""


@dataclass(frozen=True)
class FarMachine:
    """A machine with a folder for the launch, and a Python in it.

    Attributes:
        folder: Absolute, over there.
        python: Absolute, over there.
        uv: Absolute, or empty.
    """

    transport: Transport
    folder: str
    python: str
    uv: str = ""

    @classmethod
    def reach(cls, transport: Transport, folder: str, python: str | None, places: str = _PLACES) -> FarMachine:
        """Find the machine's Python and make the launch's folder.

        Args:
            folder: Absolute, or below the home folder there.
            python: A Python to use; None looks for one.
            places: Where to look for one.

        Raises:
            Unreachable: The machine does not answer.
            UserError: It has no Python that can be used, or the folder cannot be made.
        """
        where = shlex.quote(folder) if folder.startswith("/") else f'"$HOME"/{shlex.quote(folder)}'
        script = (_HERE / "reach.sh").read_text(encoding="utf-8")
        words = f"{shlex.quote(python or '')} {shlex.quote(places)} {where}"
        answer = transport.run(f"umask 077; /bin/sh -c {shlex.quote(script)} reach {words}", timeout=300)
        facts = dict(line.partition("=")[::2] for line in answer.text.splitlines() if "=" in line)
        if "problem" in facts:
            raise UserError(f"on: {transport.name}: {facts['problem']}.")
        if answer.status or not facts.get("python"):
            raise Unreachable(f"{transport.name}: {(answer.err or answer.text).strip()[-300:]}")
        return cls(transport, facts["folder"], facts["python"], facts.get("uv", ""))

    def prepare(self, pieces: Sequence[Piece], say: Callable[[str], None]) -> None:
        """Send the scripts and every piece that is not there yet; a piece cut off half-way goes on where it was.

        Raises:
            Unreachable: The connection broke; call again.
            UserError: A file cannot be written there.
        """
        for name in SCRIPTS:
            place = shlex.quote(f"{self.folder}/{name}")
            with (_HERE / name).open("rb") as file:
                self._sure(f"umask 077; cat > {place}.new && mv {place}.new {place}", give=file)
        self.send(pieces, say)
        self._sure(self._depot("unpack"), timeout=_LONG)

    def send(self, pieces: Sequence[Piece], say: Callable[[str], None]) -> None:
        """Send the pieces that are not there yet, in their order. Raises as `prepare` does."""
        if not pieces:
            return
        there = self._json("have", give={piece.path: piece.sha256 for piece in pieces}, timeout=_LONG)
        missing = [piece for piece in pieces if there[piece.path] != "whole"]
        if missing:
            total = sum(piece.size for piece in missing)
            say(f"sending {len(missing)} files, {total / 2**20:.1f} MiB, to {self.transport.name}:{self.folder}")
        for piece in missing:
            self._send(piece, there[piece.path])

    def start(self, job: Mapping[str, Any]) -> bool:
        """Start a detached worker; False if one is at work. The job travels on standard input, not in a file."""
        command = f"umask 077; {shlex.quote(self.python)} -I {shlex.quote(self.folder + '/worker.py')} "
        answer = self._sure(command + shlex.quote(self.folder), give=io.BytesIO(json.dumps(job).encode()))
        return answer.text != AT_WORK

    def look(self) -> dict[str, Any]:
        """How the launch stands; see `depot.look`."""
        return dict(self._json("look", timeout=300))

    def leftovers(self) -> list[dict[str, Any]]:
        """The files of runs that have not ended; see `depot.leftovers`."""
        return list(self._json("leftovers", timeout=_LONG))

    def stop(self, *, kill: bool = False) -> None:
        """Ask the worker to end, or kill it and what it started."""
        self._sure(self._depot("kill" if kill else "stop"))

    def fetch(self, pieces: Sequence[tuple[str, int, int]], take: Callable[[bytes], None]) -> None:
        """Receive pieces of files (path, offset, length), one after another.

        Raises:
            Unreachable: The connection broke; what came before it is good.
        """
        asked = io.BytesIO(json.dumps(pieces).encode())
        answer = self.transport.run(self._depot("give"), give=asked, take=take, timeout=120)
        if answer.status:
            raise Unreachable(f"{self.transport.name}: {answer.err.strip()[-300:] or 'a file became shorter'}")

    def arrived(self) -> None:
        """Tell the machine that everything is home: a guard on it need not hold it any longer."""
        self._sure(f"touch {shlex.quote(self.folder + '/arrived')}")

    def _send(self, piece: Piece, size: int | str) -> None:
        at = int(size) if int(size) < piece.size else 0
        for _ in range(3):
            with io.BytesIO(piece.source) if isinstance(piece.source, bytes) else piece.source.open("rb") as file:
                file.seek(at)
                done = self._json("take", piece.path, str(at), piece.sha256, give=file, timeout=_LONG)
            if done["whole"]:
                return
            if done["size"] < piece.size:
                raise Unreachable(f"{self.transport.name}: {piece.path} was cut off at {done['size']} bytes")
            at = 0
        with suppress(OSError):
            if not isinstance(piece.source, bytes) and Piece.of(piece.path, piece.source).sha256 != piece.sha256:
                raise UserError(f"launch: {piece.source} changes while it is sent, expected a file at rest.")
        raise UserError(f"launch: {piece.path} arrives at {self.transport.name} with a wrong hash, three times.")

    def _depot(self, *words: str) -> str:
        task, *rest = words
        call = [self.python, "-I", f"{self.folder}/depot.py", task, self.folder, *rest]
        return "umask 077; " + shlex.join(call)

    def _json(self, *words: str, give: Any = None, timeout: float = 60) -> Any:
        data = give if give is None or hasattr(give, "read") else io.BytesIO(json.dumps(give).encode())
        answer = self._sure(self._depot(*words), give=data, timeout=timeout)
        try:
            return json.loads(answer.text)
        except ValueError as error:
            raise Unreachable(f"{self.transport.name}: its answer was cut off") from error

    def _sure(self, script: str, *, give: IO[bytes] | None = None, timeout: float = 60) -> Answer:
        answer = self.transport.run(script, give=give, timeout=timeout)
        if answer.status:
            last = (answer.err.strip() or answer.text).splitlines()[-1:] or ["no message"]
            if "No space left" in answer.err:
                raise UserError(f"on: {self.transport.name}: the disk of {self.folder} is full ({last[0]}).")
            raise Unreachable(f"{self.transport.name}: status {answer.status}: {last[0][-300:]}")
        return answer

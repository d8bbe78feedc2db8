"""How a machine is reached: one primitive, a shell command with bytes in and bytes out."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from latentwire.errors import UserError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a command is looked for on the other machine, whatever its login shell says."""
_KEPT = "USER LD_LIBRARY_PATH CUDA_VISIBLE_DEVICES HF_HOME SSL_CERT_FILE http_proxy https_proxy no_proxy TMPDIR"
_REFUSED = ("Permission denied", "Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED")
_UNREACHABLE = 255
_CHUNK = 1 << 16


class Unreachable(Exception):
    """The machine did not answer, or stopped answering half-way; asking again may help."""


@dataclass(frozen=True)
class Answer:
    """What a command came to: its exit status, and what it printed to both outputs."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as text, without the last line break."""
        return self.out.decode("utf-8", "replace").rstrip("\n")


class Transport(Protocol):
    """A machine that runs commands."""

    @property
    def name(self) -> str:
        """As messages call it."""
        ...

    def run(
        self,
        script: str,
        *,
        give: IO[bytes] | None = None,
        take: Callable[[bytes], None] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """Run a POSIX shell script in a clean environment.

        Args:
            script: What `/bin/sh` runs.
            give: What it reads.
            take: Receives its output piece by piece, instead of `Answer.out`.
            timeout: Seconds without any byte of output after which the machine counts as unreachable.

        Raises:
            Unreachable: It did not answer.
        """
        ...


def cleaned(script: str, marker: str) -> str:
    """The script in an environment of its own; what a login shell prints before `marker` is not its output."""
    kept = " ".join(f'{name}="${name}"' for name in _KEPT.split())
    # A variable that is not set must stay unset: an empty CUDA_VISIBLE_DEVICES hides every GPU.
    drop = "; ".join(f'[ -n "${name}" ] || unset {name}' for name in _KEPT.split())
    inner = f"{drop}; printf %s {marker}; {script}"
    return f'exec env -i HOME="$HOME" {kept} PATH={PATH} LANG=C.UTF-8 PYTHONUTF8=1 /bin/sh -c {shlex.quote(inner)}'


class Shell:
    """A machine behind a command whose last word is a script to run."""

    name: str

    def words(self) -> tuple[list[str], dict[str, str]]:
        """The command, without its last word, and its environment."""
        raise NotImplementedError

    def judged(self, answer: Answer) -> Answer:
        """The answer, unless it is the command's own failure."""
        return answer

    def run(
        self,
        script: str,
        *,
        give: IO[bytes] | None = None,
        take: Callable[[bytes], None] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """See `Transport.run`."""
        command, environment = self.words()
        return self.judged(converse(command, script, environment, give, take, timeout, self.name))


@dataclass(frozen=True)
class Here(Shell):
    """This machine, in another folder and with a clean environment: for a rehearsal, and for a Slurm login node.

    Attributes:
        home: What `$HOME` is there.
    """

    home: Path
    name: str = "this machine"

    def words(self) -> tuple[list[str], dict[str, str]]:
        """A shell of this machine, and what of this environment a machine has too."""
        environment = {name: os.environ[name] for name in _KEPT.split() if name in os.environ}
        return ["/bin/sh", "-c"], environment | {"HOME": str(self.home)}


@dataclass(frozen=True)
class OverSsh(Shell):
    """A machine behind `ssh`, with what the user's own ssh configuration says about it.

    Attributes:
        host: `HOST`, `USER@HOST` or an alias.
        port: None for the configuration's.
        options: What `ssh -o` takes, each.
    """

    host: str
    port: int | None = None
    options: Sequence[str] = field(default=())

    @property
    def name(self) -> str:  # type: ignore[override]
        """As messages call it."""
        return f"ssh:{self.host}" + (f":{self.port}" if self.port else "")

    def words(self) -> tuple[list[str], dict[str, str]]:
        """`ssh` that never asks and notices a lost connection, in this environment."""
        fixed = ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=10", "ServerAliveCountMax=3")
        command = ["ssh", *[word for option in (*self.options, *fixed) for word in ("-o", option)]]
        command += ["-p", str(self.port)] if self.port else []
        return [*command, "--", self.host], dict(os.environ)

    def judged(self, answer: Answer) -> Answer:
        """The answer of the machine.

        Raises:
            Unreachable: ssh did not get through to it.
            UserError: The machine answers, but does not let us in.
        """
        if answer.status != _UNREACHABLE:
            return answer
        said = (answer.err.strip().splitlines() or ["the connection was closed"])[-1].strip()
        if any(word in answer.err for word in _REFUSED):
            raise UserError(
                f"on: {self.name} does not let us in ({said}), expected a key and a known host; "
                f"try: ssh {self.host} true"
            )
        raise Unreachable(f"{self.name}: {said}")


def converse(
    command: Sequence[str],
    script: str,
    environment: dict[str, str],
    give: IO[bytes] | None,
    take: Callable[[bytes], None] | None,
    timeout: float,
    name: str = "the machine",
) -> Answer:
    """Run `command` with the cleaned script as its last word, and pass the bytes on.

    Raises:
        Unreachable: The command cannot be started, fell silent, or ended before the script began.
    """
    marker = f"@{secrets.token_hex(8)}@"
    collected: list[bytes] = []
    sink, start = take or collected.append, marker.encode()
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [*command, cleaned(script, marker)],
                stdin=subprocess.PIPE if give is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:
            raise UserError(f"on: {command[0]} cannot be run ({error.strerror}); install it.") from error
        silence = _Silence(process, timeout)
        try:
            if give is not None:
                threading.Thread(target=_feed, args=(process, give, silence), daemon=True).start()
            assert process.stdout is not None
            before = b""
            while piece := os.read(process.stdout.fileno(), _CHUNK):
                silence.broken()
                if before is not None:
                    before += piece
                    _, found, piece = before.partition(start)
                    if not found:
                        continue
                    before = None  # type: ignore[assignment]
                if piece:
                    sink(piece)
            status = process.wait()
        finally:
            silence.end()
            _kill(process)
            process.wait()
            if process.stdout:
                process.stdout.close()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if silence.struck:
        raise Unreachable(f"{name}: no answer in {timeout:.0f} s")
    if before is not None and status != _UNREACHABLE:
        raise Unreachable(f"{name}: it ended with status {status} before the command began: {said.strip()}")
    return Answer(status, b"".join(collected), said)


def _feed(process: subprocess.Popen[bytes], give: IO[bytes], silence: _Silence) -> None:
    assert process.stdin is not None
    try:
        while piece := give.read(_CHUNK):
            process.stdin.write(piece)
            silence.broken()
    except (OSError, ValueError):
        pass  # the other end closed; its exit status says why
    finally:
        with suppress(OSError):
            process.stdin.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started, which would keep its output open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class _Silence:
    """Kills a process after `seconds` in which nothing came."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.struck = False
        self._process, self._seconds = process, seconds
        self._heard, self._ended = threading.Event(), False
        threading.Thread(target=self._watch, daemon=True).start()

    def broken(self) -> None:
        self._heard.set()

    def end(self) -> None:
        self._ended = True
        self._heard.set()

    def _watch(self) -> None:
        while not self._ended:
            if not self._heard.wait(self._seconds):
                self.struck = True
                _kill(self._process)
                return
            self._heard.clear()

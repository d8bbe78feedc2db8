"""Lines for the screen that are also kept in a run's `log.txt`, and progress with speed and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

SECONDS_BETWEEN_LINES = 15.0


class Log:
    """Prints lines, and appends them to the log file of the current run.

    Args:
        silent: Do neither: of several processes only the first one speaks.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._path: Path | None = None
        self._silent = silent

    def __call__(self, text: str) -> None:
        if self._silent:
            return
        print(text, flush=True)
        self.write_only(text)

    def write_only(self, text: str) -> None:
        """Append to the file only: for tracebacks."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text.rstrip("\n") + "\n")

    @contextmanager
    def to(self, path: Path) -> Iterator[None]:
        """Append everything printed inside to `path`."""
        self._path = path
        try:
            yield
        finally:
            self._path = None

    def progress(self, what: str, unit: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A function to call with the amount done and the total.

        A terminal shows a bar; a pipe and the log get a line every `SECONDS_BETWEEN_LINES`, with speed and time
        left.
        """
        if self._silent:
            return nullcontext(lambda done, total: None)
        return _progress(what, unit, self.write_only if sys.stderr.isatty() else self)


@contextmanager
def counted(what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more of `total` are done, for work that keeps no log.

    A terminal shows a bar; otherwise standard error gets a line every `SECONDS_BETWEEN_LINES`.
    """
    done = 0
    with _progress(what, unit, _nowhere if sys.stderr.isatty() else _to_stderr) as report:

        def add(more: int) -> None:
            nonlocal done
            done += more
            report(done, total)

        yield add


def _nowhere(text: str) -> None:
    pass


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _progress(what: str, unit: str, write: Callable[[str], None]) -> Iterator[Callable[[int, int], None]]:
    pace = Pace()
    last_line = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last_line
        pace.now(done)
        if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            write(f"{what}: {done:,} of {total:,} {unit}, {pace.speed}, {pace.left(total)} left")

    if not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    label, speed = TextColumn("{task.description}"), TextColumn("{task.fields[speed]}")
    columns = (label, BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task(what, total=None, speed="")

        def both(done: int, total: int) -> None:
            line(done, total)
            bar.update(shown, completed=done, total=total, speed=f"{unit}, {pace.speed}")

        yield both


class Pace:
    """Speed since the first report: what an earlier attempt did does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._done = 0
        self._rate = 0.0

    def now(self, done: int) -> None:
        at = time.monotonic()
        if self._first is None:
            self._first = (at, done)
        elif at > self._first[0]:
            self._rate = (done - self._first[1]) / (at - self._first[0])
        self._done = done

    @property
    def speed(self) -> str:
        return f"{self._rate:.1f} a second"

    def left(self, total: int) -> str:
        """Time left, as `2 min 5 s`."""
        return duration((total - self._done) / self._rate) if self._rate else "unknown time"


def duration(seconds: float) -> str:
    """`45 s`, `2 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

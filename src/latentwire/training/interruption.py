"""Signals that ask a training to stop: noticed between two passes, so that a snapshot can be written first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a training that SIGTERM has stopped, 143."""


class Interrupted(Exception):
    """A signal asks for a stop; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    def end(self) -> None:
        """Leave the program as the signal asks: status 143 for SIGTERM, a `KeyboardInterrupt` for Ctrl-C."""
        if self.number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt


class Interruption:
    """Remembers SIGTERM and Ctrl-C inside a `with` block; a second Ctrl-C stops at once.

    Outside the main thread, which alone receives signals, it does nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heed(self) -> None:
        """Raise `Interrupted` if a signal has asked for a stop."""
        if self.number:
            raise Interrupted(self.number)

    def ignore(self) -> None:
        """Heed no further signal: the process is about to end, and told to by more than one."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._before.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

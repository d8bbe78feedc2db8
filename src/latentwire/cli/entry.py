"""The entry point: exit statuses, and one sentence where something went wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from latentwire.cli.application import app
from latentwire.errors import UserError, short_of_memory
from latentwire.files import full_disk
from latentwire.importing import importable_here

# Typer 0.28 carries its own copy of click, older ones use click: this is the usage error of either.
_UsageError: Any = typer.BadParameter.__base__
# Before PyTorch is loaded: its waiting threads would spin, and two processes on the same cores fall to a tenth.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Steps differ in width, and blocks of fixed size then hold twice what tensors need (40 GiB for a peak of 20).
if "PYTORCH_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def main() -> None:
    """Entry point: one sentence and status 2 for bad input, a traceback only under `--debug`."""
    importable_here()
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    sys.exit(ended(lambda: app(standalone_mode=False), debug=debug))


def ended(work: Callable[[], int | None], *, debug: bool = False) -> int | None:
    """Carry out a command, and print one sentence where something went wrong.

    Args:
        work: the command; returns its exit status.
        debug: let errors pass, for their tracebacks.

    Returns:
        The exit status: 2 for bad input, 130 after Ctrl-C, 1 for any other error.

    Raises:
        SystemExit: SIGTERM has ended it, with status 143.
    """
    try:
        with _ending_when_terminated():
            status = work()
        if status == INTERRUPTED:  # Typer turns Ctrl-C into this status without a word
            raise KeyboardInterrupt
        return status
    except _UsageError as error:
        return _say(f"{str(error.format_message()).rstrip('.?')}; see {_command()} --help.", 2)
    except UserError as error:
        if debug:
            raise
        return _say(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        # Another Ctrl-C must not take the sentence away, nor end the program in a traceback while it closes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _say("stopped.", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        kind, line = type(error).__name__, str(error).splitlines()[0] if str(error) else ""
        known = full_disk(error) or short_of_memory(error)
        return _say(f"{known}." if known else f"failed with {kind}: {line} (--debug shows where)", 1)


@contextmanager
def _ending_when_terminated() -> Iterator[None]:
    """Let SIGTERM end the block in order, with status 143: what is under way is recorded.

    A training takes the signal over, and ends as soon as it has written a snapshot.
    """
    own = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a worker that was forked
            os._exit(128 + number)
        # A second signal must not cut short what the first one set off.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, before)


def _say(sentence: str, status: int) -> int:
    print(f"latentwire: {sentence}", file=sys.stderr)
    return status


def _command() -> str:
    known = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    return " ".join(["latentwire", *[word for word in sys.argv[1:2] if word in known]])

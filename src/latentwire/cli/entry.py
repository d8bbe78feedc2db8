"""The entry point: exit statuses, and one sentence where something went wrong."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import typer

from latentwire.cli.application import app
from latentwire.errors import UserError
from latentwire.importing import importable_here

# Typer 0.28 carries its own copy of click, older ones use click: this is the usage error of either.
_UsageError: Any = typer.BadParameter.__base__
# Before PyTorch is loaded: its waiting threads would spin, and two processes on the same cores fall to a tenth.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def main() -> None:
    """Entry point: one sentence and status 2 for bad input, a traceback only under `--debug`."""
    importable_here()
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # Typer turns Ctrl-C into this status without a word
            raise KeyboardInterrupt
        sys.exit(status)
    except _UsageError as error:
        sys.exit(_say(f"{str(error.format_message()).rstrip('.?')}; see {_command()} --help.", 2))
    except UserError as error:
        if debug:
            raise
        sys.exit(_say(str(error), 2))
    except (typer.Abort, KeyboardInterrupt):
        # Another Ctrl-C must not take the sentence away, nor end the program in a traceback while it closes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(_say("stopped.", INTERRUPTED))
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        sys.exit(
            _say(
                f"failed with {kind}: {str(error).splitlines()[0] if str(error) else ''} (--debug shows where)", 1
            )
        )


def _say(sentence: str, status: int) -> int:
    print(f"latentwire: {sentence}", file=sys.stderr)
    return status


def _command() -> str:
    known = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    return " ".join(["latentwire", *[word for word in sys.argv[1:2] if word in known]])

"""Watches what a process changes below a folder, and copies the folder before each change or strikes at one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITES = ("write", "append", "library")
"""Operations that put content into a file: a new file, the end of one, and by a library in compiled code."""
_TAKES_ROOM = (*WRITES, "nameless", "mkdir")
_CHANGES = {
    # By audit event, the position of the folder that a relative path starts from.
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 2,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": None,
}


def operation(seen: str) -> str:
    """The kind of operation of an entry of `Disk.seen`."""
    return seen.split(" ", 1)[0]


@dataclass
class Disk:
    """Counts the file operations of a process below a folder, and may strike at one of them.

    Attributes:
        root: the folder that is watched.
        at: the number of the operation to strike at, counted from 0; None only counts.
        mode: `full` or `term`, see `crashes`.
        copies: gets a copy of the folder before each operation, named by its number.
        seen: the operations so far, each with its path below the folder.
    """

    root: Path
    at: int | None = None
    mode: str = "full"
    copies: Path | None = None
    seen: list[str] = field(default_factory=list)
    _busy: bool = False

    def watch(self) -> None:
        """Watch this process to its end: audit hooks cannot be removed, so call it in a fork only."""
        import safetensors.torch as weights
        from transformers import PreTrainedTokenizerFast

        sys.addaudithook(self._event)
        # Compiled code raises no audit events.
        save, vocabulary = weights.save_file, PreTrainedTokenizerFast._save_pretrained
        for module in list(sys.modules.values()):
            for name in [name for name, value in list(vars(module).items()) if value is save]:
                setattr(module, name, self._before(save, lambda args: args[1]))
        PreTrainedTokenizerFast._save_pretrained = self._before(  # type: ignore[method-assign]
            vocabulary, lambda args: os.path.join(args[1], "tokenizer.json")
        )

    def _before(self, function: Callable[..., Any], path: Callable[[Any], Any]) -> Callable[..., Any]:
        def announced(*args: Any, **kwargs: Any) -> Any:
            names = (*args, *kwargs.values())
            self._strike(os.fspath(path(names)), "library")
            return function(*args, **kwargs)

        return announced

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if self._busy:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                nameless = flags & os.O_TMPFILE == os.O_TMPFILE
                self._strike(path, "nameless" if nameless else "append" if flags & os.O_APPEND else "write")
        elif event in _CHANGES:
            where = _CHANGES[event]
            self._strike(args[0], event.removeprefix("os."), args[where] if where is not None else -1)

    def _strike(self, name: Any, what: str, folder: int = -1) -> None:
        if not isinstance(name, str | bytes | os.PathLike):
            return
        path = os.fsdecode(name)
        if folder is not None and folder >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(path)
        if not path.startswith(f"{self.root}{os.sep}") or path.endswith("/.lock"):
            return  # a lock's file has no content
        number = len(self.seen)
        self.seen.append(f"{what} {os.path.relpath(path, self.root)}")
        if self.copies is not None:
            self._busy = True
            shutil.copytree(self.root, self.copies / str(number), symlinks=True)
            self._busy = False
        if self.at is None or number < self.at:
            return
        if self.mode == "full" and what in _TAKES_ROOM:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        if self.mode == "term" and number == self.at:
            os.kill(os.getpid(), signal.SIGTERM)

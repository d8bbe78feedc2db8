"""Tasks by name: the made-up world's, those read from a user's file, and lm-eval's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire import kinds
from latentwire.errors import UserError, nearest
from latentwire.tasks import harness, hotpot, jsonl, official, squad
from latentwire.tasks.base import Task

TIERS = ("one_hop", "reverse", "two_hop", "later")

GROUPS: dict[str, Callable[[str], bool]] = {
    "choices": lambda name: name.startswith("choices/"),
    "tiers": lambda name: name in TIERS,
    "shifted": lambda name: name.startswith("shifted/"),
    "world": lambda name: not name.startswith("shifted/"),
}
"""Names that stand for several tasks of the world: which of them, in the world's own order."""


@dataclass(frozen=True)
class FileKind:
    """A format of task files: how one is read, and how its name ends."""

    task: Callable[[Path, str], Task]
    suffix: str


FILE_KINDS = {
    "squad": FileKind(squad.task, ".json"),
    "hotpotqa": FileKind(hotpot.task, ".json"),
    "jsonl": FileKind(jsonl.task, ".jsonl"),
}
"""The formats of a user's own files, one line per kind."""

DATA_KINDS = (*FILE_KINDS, *official.RELEASES)
"""Everything that reads `--data`: a user's files, and the official files of benchmarks."""


def resolve(names: Sequence[str], data: Path | None, include_path: Path | None = None) -> list[Task]:
    """The tasks that `names` stand for, each once, in the order in which they are first named.

    A name is a task of the world (`one_hop`, `choices/city`), one of `GROUPS`, one of `FILE_KINDS`, which
    reads `data` (a file, or a folder that holds one file of that kind), a task of your own by its path
    (`package.module:NAME`, a `Task` or a function that returns one), or a task of lm-eval, which takes its
    documents from the hub unless it is one of `DATA_KINDS` and `data` is given.

    Args:
        include_path: a folder with lm-eval YAML files, whose tasks can be named too.

    Raises:
        UserError: a name is unknown (the nearest valid one is told), none is given, `data` is missing where
            it is needed, given where it is not, or does not lead to exactly one file, or lm-eval
            is needed and not installed.
    """
    # Here and not above: importing `latentwire.tasks.base` must not build the world's word lists.
    from latentwire.tasks.world import world_tasks

    world: Mapping[str, Task] = world_tasks()
    if not names:
        raise UserError(f"task: expected at least one of {', '.join([*GROUPS, *DATA_KINDS])}, found none.")
    if data is not None and not any(name in DATA_KINDS for name in names):
        readers = " or ".join(repr(kind) for kind in DATA_KINDS)
        raise UserError(f"data: expected a task that reads it ({readers}), found {', '.join(names)}.")
    tasks: dict[str, Task] = {}
    for name in names:
        if name in world:
            tasks[name] = world[name]
        elif name in GROUPS:
            tasks |= {member: task for member, task in world.items() if GROUPS[name](member)}
        elif kinds.is_path(name):
            task = _from_outside(name)
            tasks[task.name] = task
        elif name in FILE_KINDS:
            tasks[name] = FILE_KINDS[name].task(_file(name, data), name)
        elif name in official.RELEASES or name in (harness.names(include_path) or ()):
            documents = data if name in official.RELEASES else None
            tasks[name] = harness.task(name, name, documents, include_path)
        else:
            raise _unknown(name, [*GROUPS, *FILE_KINDS, *official.RELEASES, *world], include_path)
    return list(tasks.values())


def _from_outside(path: str) -> Task:
    """The task that `package.module:NAME` is, or that it returns when it is called without arguments."""
    task = kinds.found(path, "task")
    if callable(task):
        try:
            task = task()
        except TypeError as error:
            raise UserError(f"task: {path} cannot be called without arguments: {error}.") from error
    if not isinstance(task, Task):
        what = type(task).__name__
        raise UserError(f"task: found {path!r} of type {what}, expected a Task or a function that returns one.")
    return task


def read(kind: str, data: Path, name: str) -> Task:
    """The task of `DATA_KINDS` that is read from `data`, under any name.

    Raises:
        UserError: the file is missing or malformed, or lm-eval is needed and not installed.
    """
    return FILE_KINDS[kind].task(data, name) if kind in FILE_KINDS else harness.task(kind, name, data)


def data_files(kind: str, data: Path) -> dict[str, Path]:
    """The files that `read` reads, by what they hold; `documents` always."""
    return {"documents": data} if kind in FILE_KINDS else official.files(kind, data)


def _unknown(name: str, ours: Sequence[str], include_path: Path | None) -> UserError:
    if name in (found := harness.groups(include_path)):
        return UserError(f"task: expected single tasks of lm-eval by their names, found its group {name!r}.")
    theirs = harness.names(include_path)
    also = "of lm-eval" if theirs is not None else f"of lm-eval (not installed; {harness.INSTALL})"
    # Ours first: among the thousands of lm-eval's names there is one like any other.
    near = nearest(name, ours) or nearest(name, [*(theirs or ()), *found])
    kinds = ", ".join([*GROUPS, *FILE_KINDS])
    return UserError(f"task: expected one of {kinds}, a task of the world or {also}, found {name!r}{near}.")


def _file(kind: str, data: Path | None) -> Path:
    """The file of `kind` that `data` is, or that is the only one in the folder `data`."""
    suffix = FILE_KINDS[kind].suffix
    if data is None:
        raise UserError(f"data: expected a {suffix} file for the task {kind!r}, found none; pass --data PATH.")
    if not data.is_dir():
        return data
    files = sorted(file.name for file in data.iterdir() if file.suffix == suffix and file.is_file())
    if len(files) != 1:
        raise UserError(
            f"data: expected exactly one {suffix} file in {data}, "
            f"found {len(files)}{': ' if files else ''}{', '.join(files[:5])}."
        )
    return data / files[0]

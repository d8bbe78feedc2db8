"""Tasks by name: the made-up world's, and those read from a user's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.tasks import jsonl, reading
from latentwire.tasks.base import Task
from latentwire.tasks.files import nearest

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
    "squad": FileKind(reading.task, ".json"),
    "jsonl": FileKind(jsonl.task, ".jsonl"),
}
"""The tasks that are read from `--data`, one line per kind."""


def resolve(names: Sequence[str], data: Path | None) -> list[Task]:
    """The tasks that `names` stand for, each once, in the order in which they are first named.

    A name is a task of the world (`one_hop`, `choices/city`), one of `GROUPS`, or one of
    `FILE_KINDS`, which reads `data`: a file, or a folder that holds one file of that kind.

    Raises UserError if a name is unknown (the nearest valid one is told), none is given, or `data`
    is missing where it is needed, given where it is not, or does not lead to exactly one file.
    """
    # Here and not above: importing `latentwire.tasks.base` must not build the world's word lists.
    from latentwire.tasks.world import world_tasks

    world: Mapping[str, Task] = world_tasks()
    valid = [*GROUPS, *FILE_KINDS, *world]
    if not names:
        raise UserError(f"task: expected at least one of {', '.join([*GROUPS, *FILE_KINDS])}, found none.")
    if data is not None and not any(name in FILE_KINDS for name in names):
        kinds = " or ".join(repr(kind) for kind in FILE_KINDS)
        raise UserError(f"data: expected a task that reads it ({kinds}), found {', '.join(names)}.")
    tasks: dict[str, Task] = {}
    for name in names:
        if name in world:
            tasks[name] = world[name]
        elif name in GROUPS:
            tasks |= {member: task for member, task in world.items() if GROUPS[name](member)}
        elif name in FILE_KINDS:
            tasks[name] = FILE_KINDS[name].task(_file(name, data), name)
        else:
            raise UserError(
                f"task: expected one of {', '.join([*GROUPS, *FILE_KINDS])} or a task of the world, "
                f"found {name!r}{nearest(name, valid)}."
            )
    return list(tasks.values())


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

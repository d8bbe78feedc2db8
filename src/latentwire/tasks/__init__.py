"""Tasks by name: the made-up world's, those read from a user's file, and lm-eval's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire import kinds
from latentwire.errors import UserError, nearest, one_of
from latentwire.tasks import harness, hotpot, jsonl, official, squad
from latentwire.tasks.base import Task
from latentwire.tasks.hub import named
from latentwire.tasks.records import FIELDS
from latentwire.tasks.row_task import MAX_UNUSABLE, file_task, hub_task
from latentwire.tasks.rows import TABLES, suffix

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
    """A format of task files.

    Attributes:
        task: reads a file of this format under a name.
        suffixes: how such a file's name ends, by which it is found in a folder.
        hub_split: the split of the dataset of the same short name (`tasks.hub`) that is evaluated where no file is
            given; None where there is no such dataset.
    """

    task: Callable[[Path, str], Task]
    suffixes: tuple[str, ...]
    hub_split: str | None = None


FILE_KINDS = {
    "squad": FileKind(squad.task, (".json",), "validation"),
    "hotpotqa": FileKind(hotpot.task, (".json",), "validation"),
    "natural_questions": FileKind(file_task, (".jsonl",), "validation"),
    "jsonl": FileKind(jsonl.task, (".jsonl",)),
    "file": FileKind(file_task, TABLES),
}
"""The formats of your own files, one line per kind. All but `jsonl` also read rows with other columns, as JSON,
JSON Lines, CSV, TSV or Parquet."""

HUB = "hub:"
"""What the name of a dataset of the hub stands after: `hub:rajpurkar/squad,split=validation`."""

DATA_KINDS = (*FILE_KINDS, *official.RELEASES)
"""Everything that reads `--data`: a user's files, and the official files of benchmarks."""


def resolve(names: Sequence[str], data: Path | None, include_path: Path | None = None) -> list[Task]:
    """The tasks that `names` stand for, each once, in the order in which they are first named.

    A name is a task of the world (`one_hop`, `choices/city`), one of `GROUPS`, one of `FILE_KINDS`, which
    reads `data` (a file, or a folder that holds one file of that kind) or else its dataset of the hub, a dataset
    `hub:ID`, a task of your own by its path (`package.module:NAME`, a `Task` or a function that returns one), or a
    task of lm-eval, which takes its documents from the hub unless it is one of `DATA_KINDS` and `data` is given.
    `hub:ID` and `file` take options: `,config=C`, `,split=S`, `,revision=R`, `,max_unusable=SHARE` and, for what
    is called otherwise than expected, `,FIELD=COLUMN`, such as `,answers=reply.text`.

    Example:
        >>> [task.name for task in resolve(["tiers"], None)]
        ['one_hop', 'reverse', 'two_hop', 'later']
        >>> resolve(["squad"], Path("squad_val.jsonl.xz"))
        >>> resolve(["hub:rajpurkar/squad,split=validation[:500]"], None)

    Args:
        names: at least one.
        data: a file or a folder.
        include_path: a folder with lm-eval YAML files, whose tasks can be named too.

    Raises:
        UserError: a name is unknown (the nearest valid one is named), none is given, `data` is missing where
            it is needed, given where it is not, or does not lead to exactly one file, or lm-eval
            is needed and not installed.
    """
    # Here and not above: importing `latentwire.tasks.base` must not build the world's word lists.
    from latentwire.tasks.world import world_tasks

    world: Mapping[str, Task] = world_tasks()
    if not names:
        raise UserError(f"task: expected at least one of {', '.join([*GROUPS, *DATA_KINDS])}, found none.")
    if data is not None and not any(name.partition(",")[0] in DATA_KINDS for name in names):
        readers = " or ".join(repr(kind) for kind in DATA_KINDS)
        raise UserError(f"data: expected a task that reads it ({readers}), found {', '.join(names)}.")
    tasks: dict[str, Task] = {}
    for name in names:
        if name in world:
            tasks[name] = world[name]
        elif name in GROUPS:
            tasks |= {member: task for member, task in world.items() if GROUPS[name](member)}
        elif name.startswith(HUB) or name.partition(",")[0] == "file":
            made = _of_rows(name, data)
            tasks[made.name] = made
        elif kinds.is_path(name):
            task = _from_outside(name)
            tasks[task.name] = task
        elif name in FILE_KINDS:
            tasks[name] = _of_file(name, data)
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


def read(
    kind: str,
    data: Path,
    name: str,
    fields: Mapping[str, str] | None = None,
    max_unusable: float = MAX_UNUSABLE,
) -> Task:
    """The task of `DATA_KINDS` that is read from `data`, under any name.

    Args:
        kind: one of `DATA_KINDS`.
        data: the file.
        name: what the task is called.
        fields: of kind `file`, for what is called otherwise than expected, the column that holds it.
        max_unusable: of kind `file`, the share of rows, in [0, 1), up to which unusable ones are skipped.

    Example:
        >>> read("squad", Path("xquad_en.json"), "xquad").answer
        'span'

    Raises:
        UserError: the file is missing or malformed, fields are given for another kind, or lm-eval is needed and
            not installed.
    """
    if kind == "file":
        return file_task(data, name, fields, max_unusable)
    if fields:
        raise UserError(f"fields: found them for kind {kind!r}, expected kind: file.")
    return FILE_KINDS[kind].task(data, name) if kind in FILE_KINDS else harness.task(kind, name, data)


def data_files(kind: str, data: Path) -> dict[str, Path]:
    """The files that `read` reads, by what they hold; `documents` always."""
    return {"documents": data} if kind in FILE_KINDS else official.files(kind, data)


def hub(
    name: str,
    dataset: str,
    config: str | None = None,
    split: str = "test",
    revision: str | None = None,
    fields: Mapping[str, str] | None = None,
    max_unusable: float = MAX_UNUSABLE,
) -> Task:
    """A dataset of the hub as a task, under any name.

    Args:
        name: what the task is called.
        dataset: its id, a short name of `tasks.hub`, or a local folder that `datasets` can read.
        config: one of its configurations; None for the default one.
        split: which of its splits; slices such as `validation[:500]` work.
        revision: a branch, tag or commit.
        fields: for what is called otherwise than expected, the column that holds it.
        max_unusable: the share of rows, in [0, 1), up to which unusable ones are skipped.

    Raises:
        UserError: it cannot be loaded, or its rows are not questions with answers or choices.
    """
    return hub_task(named(dataset, config, split, revision, fields), name, max_unusable)


def _of_file(kind: str, data: Path | None) -> Task:
    """The task of a kind from a file, or from the hub where none is given."""
    split = FILE_KINDS[kind].hub_split
    if data is not None or split is None:
        return FILE_KINDS[kind].task(_file(kind, data), kind)
    try:
        return hub(kind, kind, split=split)
    except UserError as error:
        found = str(error).removeprefix("data: ").rstrip(".")
        raise UserError(
            f"data: expected a {_endings(kind)} file for the task {kind!r}, found none; pass --data PATH. "
            f"From the hub: {found}."
        ) from error


def _of_rows(text: str, data: Path | None) -> Task:
    """The task that `hub:ID` or `file` with options stands for."""
    name, *options = text.removeprefix(HUB).split(",")
    given = {}
    allowed = ("max_unusable", *(("config", "split", "revision") if text.startswith(HUB) else ()), *FIELDS)
    for option in options:
        key, equals, value = option.partition("=")
        if key not in allowed or not equals or not value:
            raise UserError(f"task: found {option!r} in {text!r}, expected KEY=VALUE with {one_of(key, allowed)}.")
        given[key] = value
    fields = {key: given.pop(key) for key in list(given) if key in FIELDS}
    try:
        share = float(given.pop("max_unusable", MAX_UNUSABLE))
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(f"task: found max_unusable in {text!r} out of range, expected a share from 0 to below 1.")
    if text.startswith(HUB):
        return hub(name.rpartition("/")[2], name, fields=fields, max_unusable=share, **given)
    return file_task(_file("file", data), "file", fields, share)


def _unknown(name: str, ours: Sequence[str], include_path: Path | None) -> UserError:
    if name in (groups := harness.groups(include_path)):
        return UserError(f"task: expected single tasks of lm-eval by their names, found its group {name!r}.")
    theirs = harness.names(include_path)
    also = "of lm-eval" if theirs is not None else f"of lm-eval (not installed; {harness.INSTALL})"
    # Ours first: among the thousands of lm-eval's names there is one like any other.
    near = nearest(name, ours) or nearest(name, [*(theirs or ()), *groups])
    kinds = ", ".join([*GROUPS, *FILE_KINDS])
    return UserError(f"task: expected one of {kinds}, a task of the world or {also}, found {name!r}{near}.")


def _file(kind: str, data: Path | None) -> Path:
    """The file of `kind` that `data` is, or that is the only one in the folder `data`."""
    if data is None:
        raise UserError(
            f"data: expected a {_endings(kind)} file for the task {kind!r}, found none; pass --data PATH."
        )
    if not data.is_dir():
        return data
    wanted = FILE_KINDS[kind].suffixes
    files = sorted(file.name for file in data.iterdir() if suffix(file) in wanted and file.is_file())
    if len(files) != 1:
        raise UserError(
            f"data: expected exactly one {_endings(kind)} file in {data}, "
            f"found {len(files)}{': ' if files else ''}{', '.join(files[:5])}."
        )
    return data / files[0]


def _endings(kind: str) -> str:
    return " or ".join(FILE_KINDS[kind].suffixes)

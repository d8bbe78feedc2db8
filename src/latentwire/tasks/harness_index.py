"""lm-eval's index of its tasks, kept on disk: reading its 14,000 YAML files takes many seconds, every time.

Kept are names, kinds, files and tags; a definition is read from its YAML file when its task is built. The index is
made anew once any of those files is another one. Losing it costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentwire.files import cache_folder, write_atomically

FORMAT = 1
"""Another number for another form of the file."""


def manager(include_path: Path | None) -> Any:
    """lm-eval's `TaskManager` over its own tasks and those of a folder.

    Args:
        include_path: a folder with lm-eval YAML files, which go before lm-eval's own.

    Raises:
        ImportError: lm-eval is not installed.

    Example:
        >>> "piqa" in manager(None).all_subtasks
        True
    """
    from lm_eval.tasks import TaskManager

    with kept_index():
        return TaskManager(include_path=include_path)


@contextmanager
def kept_index() -> Iterator[None]:
    """Within it, every `TaskManager` takes the index of lm-eval's own tasks from the disk.

    Raises:
        ImportError: lm-eval is not installed.
    """
    import lm_eval.tasks  # noqa: F401

    try:
        from lm_eval.tasks import manager as module
        from lm_eval.tasks._index import TaskIndex
    except ImportError:  # another version, which keeps its index elsewhere
        yield
        return
    own = Path(module.__file__).parent

    class Kept(TaskIndex):  # type: ignore[misc]
        @staticmethod
        def build(paths: Iterable[Path], **options: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for path in paths:
                found |= _kept(path) if path == own else TaskIndex.build([path], **options)
            return found

    built, module.TaskIndex = module.TaskIndex, Kept
    try:
        yield
    finally:
        module.TaskIndex = built


def _kept(root: Path) -> dict[str, Any]:
    """The index of a folder, from the file of an earlier process if the folder is as it was then."""
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    file, state = cache_folder() / "lm_eval_tasks.json", _state(root)
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["state"] == state:
            return {
                name: Entry(name, Kind[kind], None if path is None else root / path, None, set(tags))
                for name, (kind, path, tags) in known["entries"].items()
            }
    except (OSError, ValueError, KeyError, TypeError):
        pass
    made: dict[str, Any] = TaskIndex.build([root])
    entries = {
        name: (entry.kind.name, entry.yaml_path and str(entry.yaml_path.relative_to(root)), sorted(entry.tags))
        for name, entry in made.items()
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"state": state, "entries": entries}))
    except OSError:  # nowhere to keep it
        pass
    return made


def _state(root: Path) -> str:
    """A digest of the paths, sizes and times of a folder's YAML files."""
    digest = hashlib.sha256(f"{FORMAT}\n".encode())
    for path, status in _files(str(root)):
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry.path)
        elif entry.name.endswith(".yaml"):
            yield entry.path, entry.stat()

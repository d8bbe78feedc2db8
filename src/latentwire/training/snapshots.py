"""Where a training keeps its snapshots: the newest to go on from, the best by each metric, and the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.training import checkpoints
from latentwire.training.checkpoints import DONE, LAST, Snapshot
from latentwire.training.loop_config import Loop
from latentwire.training.stopping import Best
from latentwire.training.trainee import Trained

CHECKPOINTS = "checkpoints"


def usable(folder: Path, settings: Loop, log: Callable[[str], None]) -> Snapshot | None:
    """The snapshot that a training in this folder goes on from; damaged ones are set aside, which is logged."""

    def whole(snapshot: Snapshot) -> None:
        bests: dict[str, Best] = snapshot.state["judge"]["bests"]
        for metric, name in best_names(settings):
            if metric in bests and checkpoints.find(folder / CHECKPOINTS / hidden(name)) is None:
                raise checkpoints.Damaged(f"found {hidden(name)} beside it missing")

    return checkpoints.newest(folder / CHECKPOINTS / LAST, log, whole)


def best_names(settings: Loop) -> Iterator[tuple[str, str]]:
    """Each metric with the checkpoint that is best by it: the first of the settings is `best` itself."""
    for number, metric in enumerate(settings.best):
        yield metric, "best" if number == 0 else f"best_{metric}"


def hidden(name: str) -> str:
    """The snapshot of a best checkpoint, until the end turns it into the folder of that name."""
    return f".{name}"


def finished(places: Path, rows: str) -> Trained | None:
    """What an earlier attempt came to, if it was finished. rows: the hash of the training's data."""
    try:
        done = Trained(**json.loads((places / DONE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    check_rows(done.train_rows_sha256, rows, places / DONE)
    return done


def write_finished(places: Path, done: Trained) -> None:
    """Record what a training came to."""
    write_atomically(places / DONE, json.dumps(asdict(done), indent=1) + "\n")


def remove_all(places: Path, settings: Loop) -> None:
    """Remove what only an unfinished training needs."""
    for name in (LAST, *(hidden(name) for _, name in best_names(settings))):
        checkpoints.remove(places / name)


def check_rows(found: str, rows: str, where: Path) -> None:
    """Raise a `UserError` if what lies there was trained on other data than this."""
    if found != rows:
        raise UserError(f"resume: {where} was trained on other rows than these; start a fresh run.")

"""Trackers (TensorBoard, Weights & Biases, Trackio), which get what the run folder holds already.

A run's folder says in `trackers.json` who is told about it, so every process and every later attempt at the run
finds the same trackers and the same id. Files are written first. A tracker that fails while the work goes on is
dropped with a warning: no result depends on it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentwire import kinds
from latentwire.errors import UserError, one_of
from latentwire.files import write_atomically

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

FILE = "trackers.json"
FOLDER = "trackers"
"""Where trackers that keep files keep them, in the run's folder: `tensorboard --logdir runs` finds them."""
KINDS = ("tensorboard", "wandb", "trackio")
"""Trackers with a name; any other `GeneralTracker` of Accelerate is named by its path, `package.module:Class`."""


def check(names: Sequence[str]) -> None:
    """Check trackers before a study starts.

    Raises:
        UserError: One is unknown, its library is not installed, or it would ask for a login.
    """
    for name in names:
        if kinds.is_path(name):
            kinds.found(name, "trackers")
        elif name not in KINDS:
            raise UserError(f"trackers: found {name!r}, expected {one_of(name, KINDS)}, or {kinds.OWN}.")
        elif find_spec(name) is None:
            raise UserError(
                f"trackers: found {name!r}, which is not installed; run: pip install 'latentwire[{name}]'."
            )
        elif name == "wandb":
            _check_login()


def _check_login() -> None:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    import wandb

    if wandb.api.api_key is None:
        raise UserError(
            "trackers: found wandb without a login; run `wandb login`, or set WANDB_MODE=offline and sync later."
        )


def prepare(folder: Path, names: Sequence[str], study: str, stage: str, configuration: Mapping[str, Any]) -> None:
    """Note in a run's folder who is told about the run. The id is made of the folder's name, so it never changes.

    Args:
        folder: The run's.
        names: The trackers asked for; none removes the note of an earlier attempt.
        study: The trackers' project.
        stage: The run's stage.
        configuration: The run's settings.
    """
    path = folder / FILE
    if names:
        note = {"trackers": list(names), "project": study, "id": f"{stage}-{folder.name}"}
        write_atomically(path, json.dumps({**note, "configuration": dict(configuration)}, indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)


class Trackers:
    """The trackers of one run, at work.

    Args:
        folder: The run's folder; without a `trackers.json` in it nobody is told.
        step: Steps that are done; what TensorBoard has of later ones is replaced.

    Raises:
        UserError: A tracker cannot be started.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        path = folder / FILE
        note = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"trackers": []}
        self._at_work: dict[str, GeneralTracker] = {}
        for name in note["trackers"]:
            try:
                self._at_work[name] = _started(name, note, folder / FOLDER, step)
            except Exception as error:
                raise UserError(f"trackers: {name} could not be started ({_line(error)}).") from error

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Pass on numbers; nested ones are named like paths, such as `objectives/answer_ce`."""
        numbers = dict(_numbers(values))
        for name in list(self._at_work):
            self._try(name, lambda tracker: tracker.log(numbers, step=step))

    def samples(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Pass on samples: a table where the tracker has tables, else text."""
        if not samples:
            return
        columns = list(dict.fromkeys(key for sample in samples for key in sample))
        rows = [[_text(sample.get(column)) for column in columns] for sample in samples]
        for name in list(self._at_work):
            if name == "wandb":
                self._try(name, lambda tracker: tracker.log_table("samples", columns, rows, step=step))  # type: ignore[attr-defined]
            elif name == "trackio":
                self._try(name, lambda tracker: tracker.log({"samples": _table(columns, rows)}, step=step))
            else:
                self._try(name, lambda tracker: tracker.log({"samples": _markdown(columns, rows)}, step=step))

    def finish(self) -> None:
        """Close them; what they keep in files is complete then."""
        for name in list(self._at_work):
            self._try(name, lambda tracker: tracker.finish())
        self._at_work = {}

    def _try(self, name: str, call: Any) -> None:
        try:
            call(self._at_work[name])
        except Exception as error:
            del self._at_work[name]
            print(
                f"warning: {name} failed ({_line(error)}) and gets no more of this run; its files are complete.",
                file=sys.stderr,
            )


def _started(name: str, note: Mapping[str, Any], place: Path, step: int) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState()  # which process is the main one
    project, run = note["project"], note["id"]
    configuration = json.dumps(note["configuration"], indent=1)
    tracker: GeneralTracker
    if name == "tensorboard":
        place.mkdir(exist_ok=True)
        tracker = TensorBoardTracker(name, place, **({"purge_step": step + 1} if step else {}))
    elif name == "wandb":
        place.mkdir(exist_ok=True)
        tracker = WandBTracker(project, id=run, name=run, dir=str(place), resume="allow")
    elif name == "trackio":
        # Given later, Accelerate's keywords would become settings of the run.
        tracker = TrackioTracker(project, name=run, resume="allow", config=dict(note["configuration"]))
    else:
        tracker = kinds.found(name, "trackers")(project, id=run, folder=place)
    tracker.start()
    if name == "tensorboard":  # hyperparameters would become a run of their own, one at each attempt
        tracker.log({"configuration": f"```\n{configuration}\n```"}, step=step)
    elif name != "trackio":
        tracker.store_init_configuration(dict(note["configuration"]))
    return tracker


def _numbers(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A table of Trackio."""
    import trackio

    return trackio.Table(columns=list(columns), data=[list(row) for row in rows])


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, which TensorBoard shows."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in x) + " |" for x in lines
    )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

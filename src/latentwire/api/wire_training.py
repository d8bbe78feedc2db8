"""`train`: a latent wire trained before frozen readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latentwire.errors import UserError, one_of
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.training.trainee import Trained
from latentwire.training.wire.train import check, train_wire
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.latent_wire import Latent, locate

SETTINGS = "settings.json"


@dataclass(frozen=True)
class TrainedWire:
    """A wire that has been trained.

    Attributes:
        folder: holds `settings.json`, `diagnostics.jsonl`, `samples/` and `checkpoints/{last,best,final}`.
        training: steps, best loss in nats per token, and why training ended.

    Example:
        ```python
        trained = latentwire.train("wires/mine", steps=200)
        memory = latentwire.compress("embedded:heron", "Ada lives in Rome.", trained.wire)
        ```
    """

    folder: Path
    training: Trained

    @property
    def wire(self) -> Latent:
        """The wire as it was at the evaluation with the lowest loss."""
        return Latent(path=str(self.folder))


def train(
    folder: str | PathLike[str],
    wire: LatentConfig | Mapping[str, Any] | None = None,
    *,
    models: Iterable[LM] = (),
    start: str | PathLike[str] | None = None,
    log: Callable[[str], None] = print,
    **settings: Any,
) -> TrainedWire:
    """Train a latent wire; the readers' own weights stay as they are.

    A training that was interrupted goes on from its last snapshot when it is called again with the same settings.

    Args:
        folder: where everything is written.
        wire: what the wire is made of, as a study's `wire:` writes it: `source`, `encoder`, `adapters`. By default
            an encoder of `embedded:heron` that keeps every fourth key and value.
        models: models that are loaded already; those that the wire names and that are not here are loaded.
        start: a trained wire to go on from: its folder or `embedded:NAME`.
        log: called with each line of progress.
        settings: those of a study's wire stage: `steps`, `passages`, `questions`, `data`, `objectives`,
            `learning_rate`, `precision` and so on.

    Returns:
        The trained wire; `.wire` goes into `evaluate` and `compress`.

    Raises:
        UserError: a setting is wrong, the folder holds a training with other settings, or a model does not fit.

    Example:
        ```python
        trained = latentwire.train("wires/mine", steps=200, passages=16, warmup_steps=20)
        print(latentwire.evaluate("embedded:heron", "one_hop", ["text", trained.wire, "none"], limit=100))
        ```
    """
    made = _settings(wire, settings)
    place = Path(folder)
    began = locate(str(start)) if start is not None else None
    loaded = {lm.name: lm for lm in models}
    readers = {name: _model(name, loaded) for name in made.readers}
    source = _model(made.wire.source, loaded)
    _claim(place, made, start)
    check(readers, source, made, began)
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / SETTINGS, _written(made, start))
    return TrainedWire(place, train_wire(readers, source, made, place, start=began, log=log))


def _settings(wire: LatentConfig | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> WireTraining:
    given = dict(settings)
    if wire is not None:
        given["wire"] = wire.model_dump() if isinstance(wire, LatentConfig) else dict(wire)
    try:
        return WireTraining.model_validate(given)
    except ValidationError as error:
        raise UserError(_mistake(error)) from error


def _mistake(error: ValidationError) -> str:
    """The first mistake in one sentence; of a misspelt key the key itself, not what is missing because of it."""
    mistakes = error.errors(include_url=False)
    first = next((each for each in mistakes if each["type"] == "extra_forbidden"), mistakes[0])
    path = [str(part) for part in first["loc"]]
    field = ".".join(path) or "settings"
    if first["type"] == "extra_forbidden":
        valid = f", expected {one_of(path[-1], WireTraining.model_fields)}" if len(path) == 1 else ""
        return f"{field}: found an unknown setting{valid}."
    if first["type"] == "missing":
        return f"{field}: found nothing, expected a value."
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: found {first['input']!r:.60}; {message[0].lower()}{message[1:]}."


def _model(name: str, loaded: dict[str, LM]) -> LM:
    if name not in loaded:
        loaded[name] = LM.load(name)
    return loaded[name]


def _written(settings: WireTraining, start: str | PathLike[str] | None) -> str:
    return json.dumps({**settings.model_dump(mode="json"), "start": start and str(start)}, indent=1) + "\n"


def _claim(folder: Path, settings: WireTraining, start: str | PathLike[str] | None) -> None:
    """Refuse a folder that holds something other than this training, begun or finished."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"folder: {folder} is a file, expected a folder.")
    path = folder / SETTINGS
    if not path.is_file():
        if any(folder.iterdir()):
            raise UserError(f"folder: {folder} holds other files, expected a new folder or an empty one.")
    elif path.read_text(encoding="utf-8") != _written(settings, start):
        raise UserError(f"folder: {folder} holds a training with other settings, expected a new folder.")

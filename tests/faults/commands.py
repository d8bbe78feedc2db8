"""The commands that are struck: a finetuning, a wire's training, an evaluation and an export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.crashes import Work, command, folder_results, study_results
from tests.support.models import tiny_lm
from tests.support.studies import written
from tests.support.wire_studies import encoder, fit

TASKS: dict[str, Any] = {"tasks": ["choices/home"], "limit": 3}


@dataclass(frozen=True)
class Struck:
    """A command and what of its folder must be the same whatever happened on the way."""

    work: Work
    results: Callable[[Path], dict[str, Any]]


def _model(folder: Path) -> str:
    """A model of one layer."""
    place = folder / "model"
    tiny_lm(max_position_embeddings=2048, num_hidden_layers=1).save(place)
    return str(place)


def _study(folder: Path, study: dict[str, Any]) -> Struck:
    path = str(written(folder, study))
    return Struck(lambda place: command("run", path, "--runs", str(place)), study_results)


def finetuning(folder: Path) -> Struck:
    """Four steps with two evaluations, and an arm that reads the checkpoint."""
    tuned = {
        "kind": "finetune",
        "data": {"kind": "world", "tasks": ["one_hop"]},
        "steps": 4,
        "rows": 1,
        "row_tokens": 512,
        "eval_samples": 2,
        "eval_steps": 2,
        "log_steps": 1,
        "samples": 1,
    }
    after = {"kind": "evaluate", "start_from": "tuned", "arms": {"text": "text"}}
    stages = {"tuned": tuned, "after": after}
    return _study(folder, {"name": "finetuned", "model": _model(folder), **TASKS, "stages": stages})


def wire(folder: Path) -> Struck:
    """Two steps of a wire's training, and an arm that reads over it."""
    model = _model(folder)
    trained = fit(model, encoder(), {model: {"kind": "native"}}, log_steps=1, samples=1)
    stages = {"trained": trained, "over": {"kind": "evaluate", "arms": {"latent": "stage:trained"}}}
    return _study(folder, {"name": "wired", "model": model, **TASKS, "stages": stages})


def evaluation(folder: Path) -> Struck:
    """Two tasks over two arms."""
    stages = {"read": {"kind": "evaluate", "arms": {"text": "text", "none": "none"}}}
    tasks = {"tasks": ["choices/home", "choices/job"], "limit": 3}
    return _study(folder, {"name": "evaluated", "model": _model(folder), **tasks, "stages": stages})


def export(folder: Path) -> Struck:
    """A model saved as a folder that others can load."""
    model = _model(folder)

    def save(place: Path) -> int:
        from latentwire import load
        from latentwire.cli import entry

        # As a command does it, so that a full disk and SIGTERM end in its sentence and status.
        return entry.ended(lambda: load(model).save(place / "model")) or 0

    return Struck(save, folder_results)


COMMANDS: dict[str, Callable[[Path], Struck]] = {
    "finetuning": finetuning,
    "wire": wire,
    "evaluation": evaluation,
    "export": export,
}

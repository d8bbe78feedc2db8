"""The commands that are struck: a finetuning, a wire's training, an evaluation, each as small as it can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.studies import model_folder, written
from tests.support.wire_studies import encoder, fit

TASKS: dict[str, Any] = {"tasks": ["choices/home"], "limit": 3}


def finetuning(folder: Path) -> list[str]:
    """Four steps with two evaluations, and an arm that reads the checkpoint."""
    study = {
        "name": "finetuned",
        "model": str(model_folder()),
        **TASKS,
        "stages": {
            "tuned": {
                "kind": "finetune",
                "data": {"kind": "world", "tasks": ["one_hop"]},
                "steps": 4,
                "rows": 1,
                "row_tokens": 256,
                "eval_samples": 2,
                "eval_steps": 2,
                "log_steps": 1,
                "samples": 1,
            },
            "after": {"kind": "evaluate", "start_from": "tuned", "arms": {"text": "text"}},
        },
    }
    return ["run", str(written(folder, study)), "--runs", "RUNS"]


def wire(folder: Path) -> list[str]:
    """Two steps of a wire's training, and an arm that reads over it."""
    model = str(model_folder("llama", 2048))
    study = {
        "name": "wired",
        "model": model,
        **TASKS,
        "stages": {
            "trained": fit(model, encoder(), {model: {"kind": "native"}}, log_steps=1, samples=1),
            "over": {"kind": "evaluate", "arms": {"latent": "stage:trained"}},
        },
    }
    return ["run", str(written(folder, study)), "--runs", "RUNS"]


def evaluation(folder: Path) -> list[str]:
    """Two tasks over two arms."""
    study = {
        "name": "evaluated",
        "model": str(model_folder()),
        "tasks": ["choices/home", "choices/job"],
        "limit": 3,
        "stages": {"read": {"kind": "evaluate", "arms": {"text": "text", "none": "none"}}},
    }
    return ["run", str(written(folder, study)), "--runs", "RUNS"]


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "finetuning": finetuning,
    "wire": wire,
    "evaluation": evaluation,
}

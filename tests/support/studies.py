"""A small study for the tests: a tiny random model, two tasks, a few steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

from latentwire.studies.runner import Carried
from tests.support.models import tiny_lm

Carry = Callable[..., Carried]

MASKED = {"text": "text,mask=prefix", "none": "none,mask=prefix"}
PLAIN = {"text": "text", "none": "none"}


@cache
def model_folder(family: str = "llama", positions: int = 1024) -> Path:
    """A tiny random model, by default with room for the world's passages, saved once for all tests."""
    folder = Path(mkdtemp(prefix="latentwire-tests-")) / family
    tiny_lm(family, max_position_embeddings=positions).save(folder)
    return folder


def small_study(**changes: Any) -> dict[str, Any]:
    """The raw mapping of a study with every kind of thing in it."""
    study: dict[str, Any] = {
        "name": "small",
        "model": str(model_folder()),
        "tasks": ["one_hop", "choices/home", "choices/job"],
        "limit": 8,
        "finetuning": {
            "data": {"kind": "world", "tasks": ["one_hop"]},
            "steps": 8,
            "rows": 2,
            "row_tokens": 512,
            "eval_samples": 4,
            "eval_steps": 2,
            "samples": 0,
        },
        "stages": {
            "baseline": {"kind": "evaluate", "arms": PLAIN},
            "ablated": {"kind": "evaluate", "arms": MASKED},
            "prefix_ft": {"kind": "finetune", "wire": "text,mask=prefix"},
            "ablated_after": {"kind": "evaluate", "start_from": "prefix_ft", "arms": MASKED},
            "plain_after": {"kind": "evaluate", "start_from": "prefix_ft", "arms": PLAIN},
        },
        "effects": {
            "baseline": "baseline/text",
            "ablated": "ablated/text",
            "after": {"prefix_ft": {"ablated": "ablated_after/text", "plain": "plain_after/text"}},
        },
        "comparisons": [
            {"name": "damage", "task": "choices", "a": "ablated/text", "b": "baseline/text", "primary": True},
            {"name": "later", "task": "macro", "a": "ablated_after/text", "b": "ablated/text"},
        ],
        "gates": [{"name": "kept", "effect": "retention", "of": "ablated_after/text", "at_least": 0.0}],
    }
    return study | changes


def written(folder: Path, study: dict[str, Any], name: str = "study.yaml") -> Path:
    """A study as a file."""
    path = folder / name
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def folders(carried: Carried) -> dict[str, Path]:
    return {name: run.folder for name, run in carried.runs.items()}

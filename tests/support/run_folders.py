"""Finished runs with outcomes of the test's choice, written by the store's own API."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from latentwire.evaluation.outcomes import Outcome, write_outcomes
from latentwire.evaluation.summarize import summarize
from latentwire.files import write_atomically
from latentwire.runs import provenance
from latentwire.runs.store import METRICS, OUTCOMES, Parent, Record, Run


@cache
def gathered() -> dict[str, Any]:
    """What `provenance.gather` says, asked once: git takes a while."""
    return provenance.gather()


def record(**changes: Any) -> Record:
    """A record of the study `s`, stage `baseline`."""
    parts: dict[str, Any] = {
        "run": "",
        "study": "s",
        "stage": "baseline",
        "kind": "evaluate",
        "identity": "1" * 64,
        "configuration": {"model": "embedded:heron", "arms": {"text": "text"}},
        "seeds": {},
        "inputs": {},
        "parents": {},
        **gathered(),
    }
    return Record.model_validate({**parts, **changes})


def answers(
    right: Sequence[float], arm: str = "text", task: str = "one_hop", group: Callable[[int], int] = lambda at: at
) -> list[Outcome]:
    """Outcomes with these scores, examples 0, 1, 2, ..."""
    return [
        Outcome(task=task, arm=arm, id=f"{task}/{at}", group=f"g{group(at)}", prediction="x", metrics=both(score))
        for at, score in enumerate(right)
    ]


def both(score: float) -> dict[str, float]:
    """An outcome's metrics."""
    return {"exact_match": float(score), "f1": float(score)}


def drawn_answers(share: float, n: int, seed: int, **how: Any) -> list[Outcome]:
    """Outcomes of which about this share is right."""
    return answers(np.random.default_rng(seed).random(n) < share, **how)  # type: ignore[arg-type]


def evaluated(
    root: Path,
    stage: str,
    outcomes: Sequence[Outcome],
    *,
    study: str = "s",
    parents: Mapping[str, Parent] | None = None,
    **changes: Any,
) -> Run:
    """A finished evaluation with these outcomes."""
    arms = {outcome.arm: outcome.arm for outcome in outcomes}
    configuration = {"model": "embedded:heron", "arms": arms}
    made = record(study=study, stage=stage, configuration=configuration, parents=parents or {}, **changes)
    run = Run.create(root, made)
    with run.work():
        write_outcomes(run.folder / OUTCOMES, outcomes)
        write_atomically(run.folder / METRICS, json.dumps(summarize(outcomes), indent=1) + "\n")
        (run.folder / "log.txt").write_text(f"starting {stage}\n{len(outcomes)} answers\n")
        run.finish({"floors": {}, "seconds": 1.0})
    return run


def trained(root: Path, stage: str, seed: int, *, study: str = "s", steps: int = 4) -> Run:
    """A finished training with something in its checkpoints."""
    run = Run.create(root, record(study=study, stage=stage, kind="finetune", seeds={"training": seed}))
    with run.work():
        for name in ("best", "final"):
            place = run.folder / "checkpoints" / name
            place.mkdir(parents=True)
            (place / "model.safetensors").write_bytes(bytes(range(64)))
        lines = [{"step": at, "loss": 2.0 - at / 10, "seconds": float(at)} for at in range(1, steps + 1)]
        (run.folder / "diagnostics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run.folder / "log.txt").write_text(f"starting {stage}\n")
        run.finish({"steps": steps, "best_loss": 1.6, "stopped": "steps"})
    return run


def parent(run: Run) -> dict[str, Parent]:
    """The parents of a run that starts from this one."""
    return {run.record.stage: Parent(run=run.record.run, identity=run.record.identity)}

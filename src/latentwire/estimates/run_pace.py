"""How fast a run has been so far, from its own diagnostics, and what is left of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.runs.store import LOG, Run

DIAGNOSTICS = "diagnostics.jsonl"
_ANSWERED = re.compile(r"([\d,]+) of ([\d,]+) answers, ([\d.]+) a second")
_UNSTEADY = 1
"""Logged steps at the beginning that do not count: kernels are compiled and caches are cold."""


@dataclass(frozen=True)
class RunPace:
    """What a run has shown.

    Attributes:
        gpu: the accelerator it runs on, as its record names it; None for a CPU.
        done, total: steps or answers.
        seconds_each: of one of them.
        evaluation_seconds: of one evaluation during a training.
        evaluations_left: how many are still to come.
        since_snapshot: steps that a move would lose.
        snapshot_bytes: what would have to be moved.
        memory_gib: the most it has used, where it says so.
    """

    gpu: str | None
    done: int
    total: int
    seconds_each: float
    evaluation_seconds: float = 0.0
    evaluations_left: int = 0
    since_snapshot: int = 0
    snapshot_bytes: int = 0
    memory_gib: float | None = None

    @property
    def left(self) -> int:
        """Steps or answers still to do."""
        return self.total - self.done

    @property
    def seconds_left(self) -> float:
        """Where it runs now, at the pace so far."""
        return self.left * self.seconds_each + self.evaluations_left * self.evaluation_seconds


def pace(run: Run) -> RunPace:
    """The pace of a run that is under way, was interrupted, or is done.

    Raises:
        UserError: it has not shown enough: fewer than two logged steps, or no line of progress.
    """
    gpu = run.record.machine.get("accelerator")
    name = None if gpu is None else str(gpu)
    if run.record.kind == "evaluate":
        return _answers(run, name)
    return _steps(run, name)


def _steps(run: Run, gpu: str | None) -> RunPace:
    lines = _lines(run.folder / DIAGNOSTICS)
    trained = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "eval_loss" in line]
    steady = trained[_UNSTEADY:] if len(trained) > _UNSTEADY + 1 else trained
    if len(steady) < 2:
        raise UserError(
            f"run: found {len(trained)} logged steps in {run.folder / DIAGNOSTICS}, expected two; a smaller "
            "log_steps logs more."
        )
    first, last = steady[0], steady[-1]
    each = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    settings = run.record.configuration
    total, every = int(settings["steps"]), int(settings["eval_steps"])
    done = max(line["step"] for line in lines)
    costs = [line["eval_seconds"] for line in evaluated if "eval_seconds" in line]
    snapshots = sorted((run.folder / "checkpoints" / "last").rglob("*")) if done < total else []
    saved = max((line["step"] for line in evaluated), default=0)
    return RunPace(
        gpu,
        done,
        total,
        each,
        # The first one also compiles, and generates from a cold start.
        evaluation_seconds=sum(costs[1:] or costs) / max(1, len(costs[1:] or costs)),
        evaluations_left=-(-total // every) - done // every,
        since_snapshot=max(0, done - saved)
        if settings.get("save_steps") is None
        else done % settings["save_steps"],
        snapshot_bytes=sum(path.stat().st_size for path in snapshots if path.is_file()),
        memory_gib=max((line["memory_gib"] for line in trained if "memory_gib" in line), default=None),
    )


def _answers(run: Run, gpu: str | None) -> RunPace:
    path = run.folder / LOG
    found = _ANSWERED.findall(path.read_text(encoding="utf-8")) if path.exists() else []
    if not found:
        raise UserError(f"run: found no line of progress in {path}, expected one: it is written every 15 seconds.")
    done, total, speed = (float(text.replace(",", "")) for text in found[-1])
    if speed == 0:
        raise UserError(f"run: found a speed of 0 in {path}, expected the run to be further.")
    return RunPace(gpu, int(done), int(total), 1 / speed)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"run: found no {path}, expected a training that has begun.") from error
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # half a line, of a run that is writing it
    return found

"""Whether a trained wire is accepted: its readers' answers to validation examples, held against gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from latentwire.errors import UserError, one_of
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.gates import EXAMPLES, Gate, hold
from latentwire.evaluation.metrics import METRICS
from latentwire.evaluation.outcomes import Outcome, write_outcomes
from latentwire.evaluation.summary import summarize
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split, Task
from latentwire.training.data import PassageData
from latentwire.training.wire.config import Fit
from latentwire.training.wire.passages import groups
from latentwire.wires.latent.latent_wire import Latent


def check(data: PassageData, gates: Sequence[Gate], examples: int) -> None:
    """Refuse gates that could not be held.

    Raises:
        UserError: no such metric, too small a sample, or data without questions.
    """
    tasks = data.evaluation_tasks()
    known = {name for task in tasks for name in METRICS[task.answer]} | {"nll"}
    known |= {"first_token_top1", "first_token_top5"} if all(task.answer != "choice" for task in tasks) else set()
    for gate in gates:
        if gate.metric not in known and not any(task.judge for task in tasks):
            raise UserError(f"accept: found {gate.metric!r}, expected {one_of(gate.metric, sorted(known))}.")
    available = sum(len(task.examples("validation", EXAMPLES)) for task in tasks)
    if examples < min(EXAMPLES, available):
        raise UserError(
            f"accept_examples: found {examples}, expected at least {min(EXAMPLES, available)}: on fewer, a gate "
            "would be held or not by chance."
        )


def judge(
    wire: Path,
    readers: Mapping[str, LM],
    settings: Fit,
    gates: Sequence[Gate],
    examples: int,
    folder: Path,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Hold every reader's answers over a trained wire against the gates: the bound of the interval counts.

    The passages whose loss chose the checkpoint (the first `eval_samples`) judge nothing, nor what shares a group
    with them, unless too few examples are left without them: then all count, and the log says so.

    Writes `outcomes.jsonl` and `metrics.json` into `folder`, an arm for each reader.

    Args:
        examples: validation examples, shared out among the tasks; fewer where there are no more.

    Returns:
        A gate and reader each: `gate`, `reader`, `value`, `low`, `high`, `n`, `groups` and `held`.
    """
    tasks = _unseen(settings, examples, log)
    limit = _limit(tasks, examples)
    outcomes: list[Outcome] = []
    judged: list[dict[str, Any]] = []
    for name, lm in readers.items():
        found = evaluate(lm, tasks, [Latent(path=str(wire))], split="validation", limit=limit).outcomes
        outcomes += [replace(outcome, arm=name) for outcome in found]
        for gate in gates:
            held = hold(gate, found, min(EXAMPLES, len(found)))
            log(f"{name}: {held}")
            judged.append({"gate": str(gate), "reader": name, **asdict(held.found), "held": held.held})
    write_outcomes(folder / "outcomes.jsonl", outcomes)
    write_atomically(folder / "metrics.json", json.dumps(summarize(outcomes), indent=1) + "\n")
    return judged


def _unseen(settings: Fit, examples: int, log: Callable[[str], None]) -> list[Task]:
    """The tasks without the groups that chose the checkpoint, if so many examples are left."""
    data, tasks = settings.data, settings.data.evaluation_tasks()
    seen = groups(data, "validation", settings.eval_samples, whole=settings.wire.carry == "prompt")

    def source(task: Task, split: Split) -> Iterator[Example]:
        return (each for each in task.source(split) if each.group not in seen)

    unseen = [replace(task, source=partial(source, task)) for task in tasks]
    left = sum(len(task.examples("validation", examples)) for task in unseen)
    if left >= examples and all(task.examples("validation", 1) for task in unseen):
        return unseen
    log(f"accept: {left} examples are left beside those that chose the checkpoint, expected {examples}; all count")
    return tasks


def _limit(tasks: Sequence[Task], examples: int) -> int:
    """The smallest limit for each task under which all together have so many examples, if there are as many."""
    sizes = [len(task.examples("validation", examples)) for task in tasks]
    wanted = min(examples, sum(sizes))
    return next(limit for limit in range(1, max(sizes) + 1) if sum(min(size, limit) for size in sizes) >= wanted)

"""Gates of a trained wire: thresholds that its readers' answers to validation examples must reach."""

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
from latentwire.evaluation.summarize import summarize
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split, Task
from latentwire.training.data import PassageData
from latentwire.training.wire.passages import groups
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent.latent_wire import Latent


def check(data: PassageData, gates: Sequence[Gate], examples: int) -> None:
    """Refuse gates that cannot be judged.

    Raises:
        UserError: a metric does not exist, the sample is too small, or the data has no questions.
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
            f"accept_examples: found {examples}, expected at least {min(EXAMPLES, available)}; on fewer, chance "
            "decides whether a gate holds."
        )


def judge(
    wire: Path,
    readers: Mapping[str, LM],
    settings: WireTraining,
    gates: Sequence[Gate],
    examples: int,
    folder: Path,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Evaluate every reader over a trained wire and compare the bounds of its intervals with the gates.

    Examples that share a group with those whose loss chose the checkpoint (the first `eval_samples`) are left out,
    unless too few remain without them: then all count, and the log says so.

    Writes `outcomes.jsonl` and `metrics.json` into `folder`, with one arm for each reader.

    Args:
        wire: the folder of the wire.
        readers: who reads over it, by name.
        examples: how many validation examples to use in all tasks together, as far as there are as many.

    Returns:
        For each gate and reader: `gate`, `reader`, `value`, `low`, `high`, `n`, `groups` and `held`.
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


def _unseen(settings: WireTraining, examples: int, log: Callable[[str], None]) -> list[Task]:
    """The tasks without the groups that chose the checkpoint, if enough examples remain."""
    data, tasks = settings.data, settings.data.evaluation_tasks()
    seen = groups(data, "validation", settings.eval_samples, whole=settings.wire.carry == "prompt")

    def source(task: Task, split: Split) -> Iterator[Example]:
        return (example for example in task.source(split) if example.group not in seen)

    unseen = [replace(task, source=partial(source, task)) for task in tasks]
    left = sum(len(task.examples("validation", examples)) for task in unseen)
    if left >= examples and all(task.examples("validation", 1) for task in unseen):
        return unseen
    log(f"accept: {left} examples remain beside those that chose the checkpoint, expected {examples}; all count")
    return tasks


def _limit(tasks: Sequence[Task], examples: int) -> int:
    """The smallest limit for each task under which all together have `examples`, or as many as there are."""
    sizes = [len(task.examples("validation", examples)) for task in tasks]
    wanted = min(examples, sum(sizes))
    return next(limit for limit in range(1, max(sizes) + 1) if sum(min(size, limit) for size in sizes) >= wanted)

"""Arms times tasks: every arm answers the same examples, and each answer is an outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from latentwire.errors import UserError
from latentwire.evaluation import metrics
from latentwire.evaluation.answers import answers
from latentwire.evaluation.items import Item, prepare, reading
from latentwire.evaluation.outcomes import Outcome
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.lm.together import BATCH_TOKENS as BATCH_TOKENS
from latentwire.lm.together import Work
from latentwire.tasks.base import Split, Task
from latentwire.tasks.floors import type_floor
from latentwire.wires import Wire

Progress = Callable[[str, str, int], None]
"""Called with arm, task and the number of examples that have just been answered."""


@dataclass
class Evaluation:
    """What came of it.

    outcomes: task by task, arm by arm, examples in the task's order.
    floors: per task what a reader earns who reads nothing (`chance`) or ignores whom the question is about
        (`type_floor`), where that is known.
    unstable: per task how many prompts end in tokens that the answer would change; those tokens stay
        outside the bidirectional block.
    work: per arm and task what scoring its choices cost, where rows were plain tokens and read together.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    unstable: dict[str, int] = field(default_factory=dict)
    work: dict[tuple[str, str], Work] = field(default_factory=dict)


def evaluate(
    lm: LM,
    tasks: Sequence[Task],
    wires: Sequence[Wire],
    *,
    split: Split = "test",
    limit: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Evaluation:
    """Let every wire answer every task.

    Everything is tokenized and measured before the first forward pass, so that a prompt that does not fit
    ends the evaluation before it costs anything.

    Args:
        limit: the first so many examples of each task; None takes all.
        batch_tokens: the size of a batch; results do not depend on it beyond rounding.

    Raises:
        UserError: a task without examples, or a prompt longer than the model.
    """
    bound = [wire.bind(lm) for wire in wires]
    prepared = ready(lm, tasks, wires, split=split, limit=limit)
    result = Evaluation()
    for task in tasks:
        items = prepared[task.name]
        result.floors[task.name] = _floors([item.example for item in items])
        result.unstable[task.name] = sum(any(prompt.unstable for prompt in item.prompts) for item in items)
        for wire in bound:
            work = result.work[wire.label, task.name] = Work()
            found: dict[str, Outcome] = {}
            for outcome in answers(lm, task, wire, items, batch_tokens, work):
                found[outcome.id] = outcome
                if progress:
                    progress(wire.label, task.name, 1)
            result.outcomes += [found[item.example.id] for item in items]
    return result


def ready(
    lm: LM, tasks: Sequence[Task], wires: Sequence[Wire], *, split: Split = "test", limit: int | None = None
) -> dict[str, list[Item]]:
    """Every task's examples, tokenized and measured under every wire.

    Raises:
        UserError: a task without examples, or a prompt longer than the model.
    """
    prepared = {task.name: prepare(lm, task, split, limit) for task in tasks}
    for task in tasks:
        for wire in wires:
            _check_lengths(lm, task, wire.bind(lm), prepared[task.name])
    return prepared


def _floors(examples: Sequence[Example]) -> dict[str, float]:
    floors = {}
    if all(example.choices for example in examples):
        floors["chance"] = metrics.chance(examples)
    if all(example.candidates for example in examples):
        floors["type_floor"] = type_floor(examples)
    return floors


def _check_lengths(lm: LM, task: Task, wire: Wire, items: Sequence[Item]) -> None:
    longest = max(items, key=lambda item: item.prompt.tokens)
    behind = max(len(answer) for item in items for answer in item.answers)
    if task.answer != "choice":
        behind = max(behind, task.max_new_tokens)
    columns = int(wire([longest.prompt], reading(lm, task)).next_position.max()) + behind
    if columns > lm.max_positions:
        raise UserError(
            f"{task.name}: {longest.example.id} needs {columns:,} tokens over {wire.label} with its answer, "
            f"expected at most {lm.max_positions:,}, which is what {lm.name} was built for."
        )

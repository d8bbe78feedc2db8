"""Arms times tasks: every arm answers the same examples, and each answer is an outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from latentwire.errors import UserError
from latentwire.evaluation import batch_size, metrics
from latentwire.evaluation.answers import answers
from latentwire.evaluation.arms import Arm, bind_all
from latentwire.evaluation.encoded import EncodedExample, prepare
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.prompts_kept import KeptPrompts
from latentwire.lm.decoding import Bans, suppressed
from latentwire.lm.halving import Halving
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.lm.scoring.shared_scorer import Work
from latentwire.process_group import ALONE, Group
from latentwire.tasks.base import Split, Task
from latentwire.tasks.floors import type_floor
from latentwire.wires import Wire

Progress = Callable[[str, str, int], None]
"""Called with arm, task and the number of examples that have just been answered."""


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        outcomes: task by task, arm by arm, examples in the task's order.
        floors: by task the score of guessing (`chance`) and of the best rule that looks at the asked relation only
            (`type_floor`, see `tasks.floors`), where they are known.
        unstable: by task how many prompts end in tokens that the answer would change; those tokens stay outside
            the bidirectional block.
        skipped: by arm and task how many examples the arm's variant could not change; they have no outcome.
        partners: by deranged arm and task how many examples have a partner of the same type, of any type, or none;
            see `Arm.partner_types`.
        work: by arm and task what scoring its choices cost, where rows were plain tokens and read together.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    unstable: dict[str, int] = field(default_factory=dict)
    skipped: dict[tuple[str, str], int] = field(default_factory=dict)
    partners: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    work: dict[tuple[str, str], Work] = field(default_factory=dict)


def evaluate(
    lm: LM,
    tasks: Sequence[Task],
    arms: Sequence[Wire | Arm],
    *,
    split: Split = "test",
    limit: int | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    begin_suppress_tokens: tuple[str, ...] = (),
    kept: KeptPrompts | None = None,
    group: Group = ALONE,
    halving: Halving | None = None,
) -> Evaluation:
    """Let every arm answer every task.

    Everything is tokenized and measured before the first forward pass, so that a prompt that does not fit
    ends the evaluation before it costs anything.

    Example:
        >>> lm = LM.load("embedded:heron")
        >>> result = evaluate(lm, resolve(["one_hop"], None), [parse("text"), parse("none")], limit=100)
        >>> print(estimate(by_arm(result.outcomes)["text"]))

    Args:
        lm: the reader, unless an arm's wire names another.
        tasks: what is asked.
        arms: wires, or wires with a variant.
        split: which examples.
        limit: the first N examples of each task; None takes all.
        batch_tokens: the most tokens of a batch; results do not depend on it beyond rounding. None takes 8,192 on
            a CPU, and on an accelerator as many as its memory suggests (`batch_size`).
        progress: called with the arm, the task and how many examples were just answered.
        begin_suppress_tokens: tokens, as text, with which no generated answer may begin.
        kept: collects the examples and what every arm delivered for them.
        group: the processes that share the examples out; each calls this with the same arguments and gets the
            outcomes that one process alone would give.
        halving: reads batches smaller once memory has run out; None starts with whole ones.

    Raises:
        UserError: no such token, a task without examples, a prompt longer than the model, or something that an arm
            cannot do.
        torch.OutOfMemoryError: a single example does not fit into memory.
    """
    halving = halving or Halving()
    suppressed(lm, begin_suppress_tokens)
    bound = bind_all([Arm.of(arm) for arm in arms], lm)
    prepared = _ready(lm, tasks, bound, split, limit)
    result = Evaluation()
    for task in tasks:
        items, of_arm = prepared[task.name]
        result.floors[task.name] = _floors([item.example for item in items])
        result.unstable[task.name] = sum(any(prompt.unstable for prompt in item.prompts) for item in items)
        if kept is not None:
            kept.begin(task.name, [item.example for item in items])
        most = batch_tokens or batch_size.batch_tokens(lm, items)
        for arm, own in of_arm:
            if skipped := len(items) - len(own):
                result.skipped[arm.label, task.name] = skipped
                if progress:
                    progress(arm.label, task.name, skipped)
            if types := arm.partner_types([item.example for item in items], task.name):
                result.partners[arm.label, task.name] = types
            work = result.work[arm.label, task.name] = Work()
            by_id: dict[str, Outcome] = {}
            for outcome in answers(lm, task, arm, own, most, work, begin_suppress_tokens, kept, group, halving):
                by_id[outcome.id] = outcome
                if progress:
                    progress(arm.label, task.name, 1)
            result.outcomes += [by_id[item.example.id] for item in own]
    return result


def ready(
    lm: LM,
    tasks: Sequence[Task],
    arms: Sequence[Wire | Arm],
    *,
    split: Split = "test",
    limit: int | None = None,
    begin_suppress_tokens: Sequence[str] = (),
) -> None:
    """Tokenize every task's examples and measure them under every arm.

    Raises:
        UserError: as `evaluate`.
    """
    suppressed(lm, begin_suppress_tokens)
    _ready(lm, tasks, bind_all([Arm.of(arm) for arm in arms], lm), split, limit)


def _ready(
    lm: LM, tasks: Sequence[Task], bound: Sequence[Arm], split: Split, limit: int | None
) -> dict[str, tuple[list[EncodedExample], list[tuple[Arm, list[EncodedExample]]]]]:
    """By task its examples, and every arm with the examples that it answers."""
    prepared = {}
    for task in tasks:
        items = prepare(lm, task, split, limit)
        of_arm = [arm.prepared(lm, task, items) for arm in bound]
        for arm, own in of_arm:
            Bans.of(lm, arm.how(task))
            _check_lengths(lm, task, arm, own)
        prepared[task.name] = items, of_arm
    return prepared


def _floors(examples: Sequence[Example]) -> dict[str, float]:
    floors = {}
    if all(example.choices for example in examples):
        floors["chance"] = metrics.chance(examples)
    if all(example.candidates for example in examples):
        floors["type_floor"] = type_floor(examples)
    return floors


def _check_lengths(lm: LM, task: Task, arm: Arm, items: Sequence[EncodedExample]) -> None:
    longest = max(items, key=lambda item: item.prompt.tokens)
    answer_tokens = max(len(answer) for item in items for answer in item.answers)
    if task.answer != "choice":
        answer_tokens = max(answer_tokens, arm.how(task).max_new_tokens)
    reader = arm.reading(lm, task)
    columns = int(arm.wire([longest.prompt], reader).next_position.max()) + answer_tokens
    if columns > reader.max_positions:
        raise UserError(
            f"{task.name}: {longest.example.id} needs {columns:,} tokens over {arm.label} with its answer, "
            f"expected at most {reader.max_positions:,}, the most that {lm.name} was built for."
        )

"""Arms of several readers on the same examples, and what is derived from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from latentwire.evaluation.arms import Arm
from latentwire.evaluation.evaluate import Evaluation, Progress, evaluate
from latentwire.evaluation.joint import joint, union
from latentwire.evaluation.prompts_kept import KeptPrompts
from latentwire.evaluation.statistics import shared
from latentwire.lm.halving import Halving
from latentwire.lm.model import LM
from latentwire.process_group import ALONE, Group
from latentwire.tasks.base import Split, Task


def readers_of(arms: Sequence[Arm], lm: LM, model: str, load: Callable[[str], LM]) -> dict[str | None, LM]:
    """The models that arms read with, by the name after an arm's `@`; None is the model of arms without one.

    Args:
        lm: the model of arms without a reader.
        model: its name; it is not loaded twice.
        load: loads another one.
    """
    others = dict.fromkeys(arm.reader for arm in arms if arm.reader is not None)
    return {None: lm, **{name: lm if name == model else load(name) for name in others}}


def evaluate_readers(
    readers: Mapping[str | None, LM],
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    *,
    split: Split = "test",
    limit: int | None = None,
    progress: Progress | None = None,
    begin_suppress_tokens: tuple[str, ...] = (),
    kept: KeptPrompts | None = None,
    group: Group = ALONE,
    halving: Halving | None = None,
) -> Evaluation:
    """`evaluate`, each arm by its own reader.

    Where several readers read the same wire without choices in the prompt, their oracle and their joint answer
    (`evaluation.joint`) follow as arms of their own.

    Example:
        >>> arms = [parse("text"), parse("text@embedded:wren")]
        >>> evaluate_readers({None: heron, "embedded:wren": wren}, tasks, arms, limit=50)

    Args:
        readers: by the name after an arm's `@`; None for arms without one.
        tasks, split, limit, progress, kept, group, halving: as in `evaluate`.
        arms: what is evaluated.

    Raises:
        UserError: as `evaluate`.
    """
    result = Evaluation()
    halving = halving or Halving()
    # Without arms it only tokenizes and counts, for every reader.
    for name in dict.fromkeys(arm.reader for arm in arms) or readers:
        mine = [arm for arm in arms if arm.reader == name]
        part = evaluate(
            readers[name],
            tasks,
            mine,
            split=split,
            limit=limit,
            progress=progress,
            begin_suppress_tokens=begin_suppress_tokens,
            kept=kept,
            group=group,
            halving=halving,
        )
        result.outcomes += part.outcomes
        result.floors |= part.floors
        # Of the same text, tokenizers differ in how many prompts end in tokens that an answer would change.
        result.unstable = {task: max(n, result.unstable.get(task, 0)) for task, n in part.unstable.items()}
        result.skipped |= part.skipped
        result.partners |= part.partners
        result.work |= part.work
    for together in _together(arms):
        for task in tasks:
            said = shared(
                [[o for o in result.outcomes if (o.arm, o.task) == (arm.label, task.name)] for arm in together]
            )
            if any(e.choices and e.answers for e in task.examples(split, limit)):
                continue
            result.outcomes += union(said)
            result.outcomes += joint(
                [(readers[arm.reader], arm) for arm in together],
                task,
                said,
                split=split,
                limit=limit,
                group=group,
                halving=halving,
            )
    return result


def _together(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Groups of two or more arms that differ in their readers only."""
    alike: dict[tuple[str, str | None, str], list[Arm]] = {}
    for arm in arms:
        alike.setdefault((arm.wire.label, arm.variant, repr(arm.decoding)), []).append(arm)
    return [each for each in alike.values() if len(each) > 1]

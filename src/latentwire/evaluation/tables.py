"""Results as a person reads them: every number with its interval, beside the baseline and the floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

from latentwire.evaluation.audit import Audit
from latentwire.evaluation.evaluate import Evaluation
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.statistics import Comparison, compare, estimate, members, shared
from latentwire.evaluation.summary import by_arm, rows
from latentwire.printing import plain_table

BASELINE = "text"


def scores(result: Evaluation, leaking: Sequence[str] = (), aware: Sequence[str] = ()) -> Table:
    """One row per task and arm, the baseline first and every other arm's paired difference beside it.

    The baseline is `text` where it is among the arms, else the first arm. Arms in `leaking` are marked, and those
    in `aware`, whose messages know the question.
    """
    arms = by_arm(result.outcomes)
    baseline = BASELINE if BASELINE in arms else next(iter(arms))
    table = plain_table("task", "arm", "score [95 %]", right=("n",))
    table.add_column(f"minus {baseline}")
    for task in rows(outcome.task for outcome in result.outcomes):
        base = members(arms[baseline], task)
        metric = _metric(base)
        for at, arm in enumerate([baseline, *(name for name in arms if name != baseline)]):
            part = members(arms[arm], task)
            found = estimate(part)
            shown = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
            table.add_row(
                f"{task} {metric}" if at == 0 else "",
                arm + " LEAKS" * (arm in leaking) + " QUESTION-AWARE" * (arm in aware),
                shown,
                str(found.n),
                "" if arm == baseline else str(_compared(part, base)),
            )
        for name, value in floors(result, task).items():
            table.add_row("", name, f"{value:.3f}", "", "")
        table.add_section()
    return table


def _compared(part: Sequence[Outcome], base: Sequence[Outcome]) -> Comparison:
    a, b = shared([part, base])
    return compare(a, b)


def floors(result: Evaluation, task: str) -> Mapping[str, float]:
    """The floors of a task, or of a family as the mean over its members where all of them have one."""
    part = [found for name, found in result.floors.items() if task == name or name.startswith(f"{task}/")]
    names = [name for name in ("chance", "type_floor") if part and all(name in found for found in part)]
    return {name: sum(found[name] for found in part) / len(part) for name in names}


def _metric(outcomes: Sequence[Outcome]) -> str:
    names = {next(iter(outcome.metrics)) for outcome in outcomes}
    return names.pop() if len(names) == 1 else "mean of primary metrics"


def errors(result: Evaluation) -> Table | None:
    """What wrong answers in words were, per arm; None if there were none."""
    wrong = {
        arm: Counter(outcome.error for outcome in found if outcome.error)
        for arm, found in by_arm(result.outcomes).items()
    }
    kinds = [kind for kind, _ in sum(wrong.values(), Counter()).most_common()]
    if not kinds:
        return None
    table = plain_table("wrong answers", right=tuple(map(str, kinds)))
    for arm, found in wrong.items():
        table.add_row(arm, *(str(found[kind]) for kind in kinds))
    return table


def audit_table(found: Audit) -> Table:
    """Who saw whom, one row per attention kernel and padding."""
    seen = ("prompt reads ahead", "sees hidden tokens", "sees own label", "change by padding")
    table = plain_table("attention", "padding", right=seen)
    for sight in found.sights:
        table.add_row(
            sight.kernel,
            sight.padding,
            f"{sight.reads_ahead:.0%}",
            str(sight.forbidden),
            "YES" if sight.own_label else "no",
            f"{sight.unpadded:.1e}",
        )
    for kernel, reason in found.skipped.items():
        table.add_row(kernel, "cannot run here:", reason)
    return table

"""Tables of scores: every number with its interval, beside the baseline and the floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

from latentwire.evaluation.audit import Audit
from latentwire.evaluation.baseline import against_baseline, baseline_of, metric_of
from latentwire.evaluation.evaluate import Evaluation
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.statistics import Estimate, estimate, members
from latentwire.evaluation.summarize import by_arm, rows
from latentwire.printing import plain_table


def scores(result: Evaluation, leaking: Sequence[str] = (), aware: Sequence[str] = ()) -> Table:
    """One row per task and arm, the baseline first and every other arm's paired difference beside it.

    Args:
        result: what the arms answered.
        leaking: labels of arms to be marked, under which a scored token sees its own label.
        aware: labels of arms to be marked, whose message was encoded with the question in sight.
    """
    arms = by_arm(result.outcomes)
    baseline = baseline_of(list(arms))
    pairs = {(pair.task, pair.a): pair for pair in against_baseline(result.outcomes)}
    spans = any("f1" in outcome.metrics for outcome in result.outcomes)
    table = plain_table("task", "arm", "score [95 %]", *["f1 [95 %]"] * spans, right=("n",))
    table.add_column(f"minus {baseline}")
    for task in rows(outcome.task for outcome in result.outcomes):
        base = members(arms[baseline], task)
        metric = metric_of(base).replace("primary", "mean of primary metrics")
        for at, arm in enumerate([baseline, *(name for name in arms if name != baseline)]):
            part = members(arms[arm], task)
            table.add_row(
                f"{task} {metric}" if at == 0 else "",
                arm + " LEAKS" * (arm in leaking) + " QUESTION-AWARE" * (arm in aware),
                _shown(estimate(part)) if part else "",
                *[_shown(estimate(part, "f1")) if _all_have(part, "f1") else ""] * spans,
                str(len(part)),
                str(pairs[task, arm].found) if (task, arm) in pairs else "",
            )
        for name, value in floors(result, task).items():
            table.add_row("", name, f"{value:.3f}", *[""] * spans, "", "")
        table.add_section()
    if len(pairs) > 1:
        table.caption = f"p-values are Holm-corrected over the {len(pairs)} comparisons of this table."
        table.caption_justify = "left"
    return table


def _shown(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _all_have(outcomes: Sequence[Outcome], metric: str) -> bool:
    return bool(outcomes) and all(metric in outcome.metrics for outcome in outcomes)


def floors(result: Evaluation, task: str) -> Mapping[str, float]:
    """The floors of a task, or of a family: the mean over its members where all of them have one."""
    part = [found for name, found in result.floors.items() if task == name or name.startswith(f"{task}/")]
    names = [name for name in ("chance", "type_floor") if part and all(name in found for found in part)]
    return {name: sum(found[name] for found in part) / len(part) for name in names}


def errors(result: Evaluation) -> Table | None:
    """How many wrong answers of each class every arm gave; None if there are none."""
    wrong = {
        arm: Counter(outcome.error for outcome in of_arm if outcome.error)
        for arm, of_arm in by_arm(result.outcomes).items()
    }
    kinds = [kind for kind, _ in sum(wrong.values(), Counter()).most_common()]
    if not kinds:
        return None
    table = plain_table("wrong answers", right=tuple(map(str, kinds)))
    for arm, of_arm in wrong.items():
        table.add_row(arm, *(str(of_arm[kind]) for kind in kinds))
    return table


def audit_table(report: Audit) -> Table:
    """Who saw whom, one row per attention kernel and padding."""
    seen = ("tokens", "prompt reads ahead", "sees hidden tokens", "sees own label", "change by padding")
    table = plain_table("attention", "padding", right=seen)
    for sight in report.sights:
        table.add_row(
            sight.kernel,
            sight.padding,
            f"{sight.tokens:,}",
            f"{sight.reads_ahead:.0%}",
            str(sight.forbidden),
            "YES" if sight.own_label else "no",
            f"{sight.unpadded:.1e}",
        )
    for kernel, reason in report.skipped.items():
        table.add_row(kernel, "cannot run here:", "", reason)
    return table

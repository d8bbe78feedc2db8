"""Tables of latent wires only: how much of the gap they close, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from latentwire.evaluation.combinations import Combination
from latentwire.evaluation.costs import Costs
from latentwire.evaluation.gaps import Gap
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.statistics import estimate, members
from latentwire.evaluation.summarize import by_arm
from latentwire.printing import plain_table


def gap_table(gaps: Mapping[str, Mapping[str, Gap]]) -> Table:
    """One row per task and arm: retention (raw) and gap closed (above the floor)."""
    names = ("task", "arm", "retention: arm / text [95 %]", "gap closed above floor [95 %]", "floor")
    table = plain_table(*names, right=("n",))
    for arm, tasks in gaps.items():
        for task, gap in tasks.items():
            floor = f"{gap.floor:.3f} {gap.floor_is}"
            table.add_row(task, arm, shown(gap.retention), shown(gap.closed), floor, str(gap.n))
    return table


def shown(combination: Combination) -> str:
    """A value with its interval, `0.966 [0.912, 1.013]`; an end without a bound is `open`."""
    if combination.value is None:
        return "undefined: text is not above the floor"
    low, high = ("open" if bound is None else f"{bound:.3f}" for bound in (combination.low, combination.high))
    return f"{combination.value:.3f} [{low}, {high}]"


def followed(outcomes: Sequence[Outcome]) -> list[str]:
    """A sentence for each counterfactual arm and task: how often answers follow the passage, or stick."""
    sentences = []
    for arm, found in by_arm(outcomes).items():
        for task in dict.fromkeys(o.task for o in found if "sticks" in o.metrics):
            part = members(found, task)
            sentences.append(f"{task} over {arm}: follows {estimate(part)}; sticks {estimate(part, 'sticks')}")
    return sentences


def cost_table(costs: Mapping[str, Mapping[str, Costs]]) -> Table:
    """One row per arm and task: sizes a context, milliseconds a question."""
    sizes = ("tokens", "latents", "bytes 16/8/6/4 bit", "text", "text kv")
    times = ("encode ms", "text ms", "cold ms", "warm ms", "pays after questions")
    table = plain_table("costs", "task", right=(*sizes, *times))
    for arm, tasks in costs.items():
        for task, cost in tasks.items():
            table.add_row(
                arm,
                task,
                f"{cost.context_tokens:.0f}",
                f"{cost.latents:.0f}",
                "/".join(f"{number:,.0f}" for number in cost.latent_bytes.values()),
                f"{cost.text_bytes:,.0f}",
                f"{cost.text_kv_bytes:,.0f}",
                *(f"{ms:.1f}" for ms in (cost.encode_ms, cost.text_ms, cost.cold_ms, cost.warm_ms)),
                "never" if cost.pays_after is None else str(cost.pays_after),
            )
    return table

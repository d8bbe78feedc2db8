"""The shape of `summary.json`, a frozen contract."""

from __future__ import annotations

from typing import Any, TypedDict

from latentwire.evaluation.summary import Metrics


class StageSummary(TypedDict):
    """run: None before there is one. metrics: empty for a finetuning, and until the stage is done."""

    run: str | None
    status: str
    metrics: Metrics


class Compared(TypedDict):
    """A comparison a − b. p is as the test gives it; resolved counts the Holm correction of primary ones."""

    name: str
    task: str
    metric: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    resolved: bool


class Summary(TypedDict):
    """`summary.json`. derived: `comparisons` (what else is known of them, by name), `effects`, `oracles` (by name
    the readings that they are of, and by task their metrics), `invalid` (by reading and task answered in words
    the share of answers that could not be read), `gates`, `repeats` (stages that resolve to the same),
    `finetunings`, `evaluations` (by stage the arms that leak, unstable prompts and floors by task, and by
    arm and task sizes and how many examples its variant skipped), and `made_of`, a hash of the runs and the
    study."""

    study: str
    stages: dict[str, StageSummary]
    comparisons: list[Compared]
    derived: dict[str, Any]

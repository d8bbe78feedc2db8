"""The shape of `summary.json`. It is a contract: keys may be added, and none changes."""

from __future__ import annotations

from typing import Any, TypedDict

from latentwire.evaluation.summarize import Metrics


class StageSummary(TypedDict):
    """A stage: its run (None before there is one), its status, and its metrics (empty until it is done)."""

    run: str | None
    status: str
    metrics: Metrics


class Compared(TypedDict):
    """A comparison a − b. `p` is uncorrected; `resolved` includes the Holm correction of primary comparisons."""

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
    """`summary.json`.

    Attributes:
        study: The study's name.
        stages: What is known of each stage.
        comparisons: The comparisons that could be made.
        derived: Everything else, by key. `comparisons`: more on each comparison, by name. `effects`. `oracles`: by
            name, the readings each is made of and its metrics by task. `invalid`: by reading and task answered in
            words, the share of answers that could not be read. `agreement`: by the readings of one wire by several
            readers, and by task, the share of examples answered alike. `pooled`: by reading over
            several seeds and by task, its primary metric over seeds and groups. `gates`. `repeats`: stages that
            resolve to the same configuration. `finetunings`: the results of each training. `evaluations`: by
            stage, the arms that leak, unstable prompts and floors by task, and sizes and skipped examples by arm
            and task.
            `outline`: the study's model, split, limit, tasks and seeds, and what each stage needs and evaluates.
            `made_of`: a hash of the runs and the study.
    """

    study: str
    stages: dict[str, StageSummary]
    comparisons: list[Compared]
    derived: dict[str, Any]

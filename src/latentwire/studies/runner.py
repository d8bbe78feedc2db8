"""Stages to runs: in order, each at most once, and each going on where it was interrupted."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.runs import provenance
from latentwire.runs.log import Log
from latentwire.runs.store import LOG, Parent, Record, Run, runs
from latentwire.studies import carry_out, plan, summary
from latentwire.studies.plan import Plan, Planned
from latentwire.studies.readers import Readers
from latentwire.studies.spec import Evaluate, Study


class StageFailed(RuntimeError):
    """A stage raised; its run says `failed` and its log holds the traceback."""


@dataclass(frozen=True)
class Carried:
    """What a study came to: the runs of its stages as far as there are any, and the summary's folder."""

    plan: Plan
    runs: dict[str, Run]
    folder: Path
    summary: summary.Summary


def run(
    study: Study, root: Path, log: Log, *, stages: Sequence[str] = (), fresh: bool = False
) -> Carried:
    """Carry out a study's stages, or those named with what they need.

    Everything that can be checked is checked before the first folder exists. After every stage
    `summary.json` and `summary.md` are written.

    Args:
        fresh: carry the stages out again although they are done. What they start from is not.

    Raises:
        UserError: the study cannot be carried out; nothing has been written.
        StageFailed: a stage raised; the next call goes on from there.
    """
    planned = plan.make(study)
    wanted = planned.needed(stages)
    found = current(planned, root)
    again = set(stages or wanted) if fresh else set()
    pending = [name for name in wanted if name in again or name not in found or found[name].status != "done"]
    readers = Readers(planned, found)
    if pending:
        _check(planned, pending, readers)
        _check_writable(root / study.name)
    log(f"{study.name}: {len(wanted) - len(pending)} of {len(wanted)} stages done, runs in {root / study.name}")
    while pending:
        name = _next(planned, pending, readers)
        pending.remove(name)
        resumed = None if name in again else found.get(name)
        found[name] = _carry_out(planned, planned.stages[name], resumed, root, readers, log)
        summary.write(planned, found, root / study.name)
    if not wanted == [] and not (root / study.name / summary.JSON).exists():
        summary.write(planned, found, root / study.name)
    return Carried(planned, found, root / study.name, summary.write(planned, found, root / study.name))


def current(planned: Plan, root: Path) -> dict[str, Run]:
    """By stage the run with the planned identity: the newest that is done, else the newest."""
    found: dict[str, Run] = {}
    for name, stage in planned.stages.items():
        for run in runs(root, planned.study.name, name):
            better = name not in found or run.status == "done" or found[name].status != "done"
            if run.record.identity == stage.identity and better:
                found[name] = run
    return found


def _check(planned: Plan, pending: Sequence[str], readers: Readers) -> None:
    """What can be known to be wrong before anything is written."""
    from latentwire.evaluation.evaluate import ready
    from latentwire.training import loop

    evaluations = []
    for name in pending:
        stage = planned.stages[name].stage
        if isinstance(stage, Evaluate):
            evaluations.append(stage)
            continue
        try:
            loop.check(stage.settings())
        except UserError as error:
            raise UserError(f"stages.{name}: {error}") from error
    lm = readers.load(next((planned.stages[name].start_from for name in pending), None), keep=True)
    wires = {wire.label: wire for stage in evaluations for wire in stage.wires()}
    # Finetuning changes weights and nothing else: what fits the first reader fits all of them.
    ready(lm, planned.tasks if wires else [], list(wires.values()), split=planned.study.split, limit=planned.study.limit)

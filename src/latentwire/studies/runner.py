"""Stages to runs: in order, each at most once, and each going on where it was interrupted."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs import provenance
from latentwire.runs.log import Log
from latentwire.runs.store import LOG, Parent, Record, Run, runs
from latentwire.studies import plan, summary
from latentwire.studies.plan import Plan, Planned
from latentwire.studies.readers import Readers
from latentwire.studies.shape import Summary
from latentwire.studies.spec import Evaluate, Study


class StageFailed(RuntimeError):
    """A stage raised; its run says `failed` and its log holds the traceback."""


@dataclass(frozen=True)
class Carried:
    """What a study came to: its runs by stage, as far as there are any, and its summary."""

    plan: Plan
    runs: dict[str, Run]
    folder: Path
    summary: Summary


def run(study: Study, root: Path, log: Log, *, stages: Sequence[str] = (), fresh: bool = False) -> Carried:
    """Carry out a study's stages, or those named with what they need.

    Everything that can be checked is checked before the first folder exists. `summary.json` and
    `summary.md` are written after every stage.

    Args:
        root: the folder of all runs.
        fresh: carry the stages out again although they are done; what they start from is not, and what
            starts from them no longer counts as done.

    Raises:
        UserError: the study cannot be carried out.
        StageFailed: a stage raised; the next call goes on from there.
    """
    planned = plan.make(study)
    wanted = planned.needed(stages)
    again = set(stages or wanted) if fresh else set()
    found = current(planned, root)
    for name in _descendants(planned, again):
        found.pop(name, None)  # its weights are about to be others
    pending = [name for name in wanted if name in again or name not in found or found[name].status != "done"]
    folder = root / study.name
    readers = Readers(planned, found)
    if pending:
        _check(planned, pending, readers)
        _check_writable(folder)
    log(f"{study.name}: {len(wanted) - len(pending)} of {len(wanted)} stages are done; runs are in {folder}")
    written = None
    while pending:
        name = _next(planned, pending, readers)
        resumed = None if name in again else found.get(name)
        made = resumed or Run.create(root, _record(planned, name, found))
        found[name] = made
        try:
            _carry_out(planned, name, made, readers, log)
        finally:
            written = summary.write(planned, found, folder)
        pending.remove(name)
    return Carried(planned, found, folder, written or summary.write(planned, found, folder))


def current(planned: Plan, root: Path) -> dict[str, Run]:
    """By stage the run with the planned identity: the newest that is done, else the newest.

    A run counts only if the weights that it started from are those of the run that counts for its parent:
    two runs of one finetuning have the same identity and may still differ in their weights.
    """
    found: dict[str, Run] = {}
    for name, stage in planned.stages.items():  # parents first
        for each in runs(root, planned.study.name, name):
            better = name not in found or each.status == "done" or found[name].status != "done"
            if each.record.identity == stage.identity and better and _starts_from(each, stage, found):
                found[name] = each
    return found


def _starts_from(run: Run, stage: Planned, found: dict[str, Run]) -> bool:
    if stage.start_from is None:
        return True
    parent, accepted = run.record.parents.get(stage.start_from), found.get(stage.start_from)
    return parent is not None and accepted is not None and parent.run == accepted.record.run


def _descendants(planned: Plan, names: Iterable[str]) -> list[str]:
    """The stages that start from `names`, directly or not; parents are planned before their children."""
    changed = set(names)
    found = []
    for name, stage in planned.stages.items():
        if stage.start_from in changed:
            changed.add(name)
            found.append(name)
    return found


def _check(planned: Plan, pending: Sequence[str], readers: Readers) -> None:
    """What can be known to be wrong before anything is written."""
    from latentwire.evaluation.evaluate import ready

    # The first pending stage's reader; finetuning changes weights only, so what fits it fits all of them.
    lm = readers.load(planned.stages[pending[0]].source)
    wires = {}
    for name in pending:
        stage = planned.stages[name].stage
        if isinstance(stage, Evaluate):
            wires.update({wire.label: wire for wire in stage.wires()})
        else:
            _check_finetuning(planned.stages[name], lm)
    if wires:
        study = planned.study
        ready(lm, planned.tasks, list(wires.values()), split=study.split, limit=study.limit)


def _check_finetuning(planned: Planned, lm: LM) -> None:
    from latentwire.training import checks

    assert not isinstance(planned.stage, Evaluate)
    try:
        checks.check(planned.stage.settings(), lm)
    except UserError as error:
        raise UserError(f"stages.{planned.name}: {error}") from error


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"runs: the folder {folder} cannot be written ({error.strerror}).") from error


def _next(planned: Plan, pending: Sequence[str], readers: Readers) -> str:
    """The first stage that can start; an evaluation whose reader is in memory goes before it."""
    able = [name for name in pending if planned.stages[name].start_from not in pending]
    at_hand = [
        name
        for name in able
        if isinstance(planned.stages[name].stage, Evaluate) and readers.holds(planned.stages[name].source)
    ]
    return (at_hand or able)[0]


def _record(planned: Plan, name: str, found: dict[str, Run]) -> Record:
    stage = planned.stages[name]
    parent = found[stage.start_from].record if stage.start_from else None
    return Record(
        run="",
        study=planned.study.name,
        stage=name,
        kind=stage.stage.kind,
        identity=stage.identity,
        configuration=stage.configuration,
        seeds={} if isinstance(stage.stage, Evaluate) else {"finetuning": stage.stage.seed},
        inputs=stage.inputs,
        parents={parent.stage: Parent(run=parent.run, identity=parent.identity)} if parent else {},
        **provenance.gather(),
    )


def _carry_out(planned: Plan, name: str, made: Run, readers: Readers, log: Log) -> None:
    from latentwire.studies import carry_out

    stage = planned.stages[name].stage
    resumed = bool(made.record.times)
    with made.work(), log.to(made.folder / LOG):
        if resumed:
            made.write(**provenance.gather())
        verb = "resuming" if resumed else "starting"
        log(f"\n{verb} {name} ({stage.kind} from {stage.start_from or planned.study.model}) in {made.folder}")
        try:
            lm = readers.load(planned.stages[name].source, to_train=not isinstance(stage, Evaluate))
            if isinstance(stage, Evaluate):
                results = carry_out.evaluate(lm, stage, planned, made.folder, log)
            else:
                results = carry_out.finetune(lm, stage, made.folder, log)
            made.finish(results)
        except Exception as error:
            made.fail(f"{type(error).__name__}: {error}")
            log.write_only(traceback.format_exc())
            if isinstance(error, UserError):
                raise UserError(f"{name}: {error}") from error
            kind = type(error).__name__
            raise StageFailed(f"{name} failed with {kind}: {error} (more in {made.folder / LOG})") from error
        finally:
            if not isinstance(stage, Evaluate):
                readers.drop()  # trained in place

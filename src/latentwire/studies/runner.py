"""Stages to runs: in order, each at most once, and each going on where it was interrupted."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.evaluation.arms import Arm
from latentwire.lm.model import LM
from latentwire.runs import provenance
from latentwire.runs.log import Log
from latentwire.runs.store import LOG, Parent, Record, Run, runs
from latentwire.studies import plan, summary
from latentwire.studies.models import Readers
from latentwire.studies.plan import Plan, Planned
from latentwire.studies.shape import Summary
from latentwire.studies.spec import Study
from latentwire.studies.stages import Evaluate, Finetune, FitWire


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
        if made.status == "rejected":
            waiting = [each for each in _descendants(planned, [name]) if each in pending]
            pending = [each for each in pending if each not in waiting]
            log(f"{name} is rejected" + (f"; {', '.join(waiting)} cannot start from it" if waiting else ""))
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
    for need in stage.needs:
        parent, accepted = run.record.parents.get(need), found.get(need)
        if parent is None or accepted is None or parent.run != accepted.record.run:
            return False
    return True


def _descendants(planned: Plan, names: Iterable[str]) -> list[str]:
    """The stages that start from `names`, directly or not; parents are planned before their children."""
    changed = set(names)
    found = []
    for name, stage in planned.stages.items():
        if changed.intersection(stage.needs):
            changed.add(name)
            found.append(name)
    return found


def _check(planned: Plan, pending: Sequence[str], readers: Readers) -> None:
    """What can be known to be wrong before anything is written."""
    from latentwire.evaluation.evaluate import ready

    study, wires = planned.study, dict[str, dict[str, Arm]]()
    suppressed: dict[str, list[str]] = {}
    finetunings = []
    for name in pending:
        stage = planned.stages[name].stage
        if isinstance(stage, Evaluate):
            found = {wire.label: wire for wire in stage.read()}
            model = planned.stages[name].configuration["model"]
            wires.setdefault(model, {}).update(found)
            suppressed.setdefault(model, []).extend(stage.begin_suppress_tokens)
        elif isinstance(stage, Finetune):
            finetunings.append(planned.stages[name])
        else:
            _check_wire(planned.stages[name], stage, readers)
    # A model as it is; finetuning changes weights only, so what fits it fits all of them.
    for model in dict.fromkeys([*wires, *([study.model] if finetunings else [])]):
        lm = readers.load((model, None, "best"))
        for each in finetunings if model == study.model else ():
            _check_finetuning(each, lm)
        if wires.get(model):
            readers.prepare_sources(lm, wires[model].values())
            ready(
                lm,
                planned.tasks,
                list(wires[model].values()),
                split=study.split,
                limit=study.limit,
                begin_suppress_tokens=suppressed[model],
            )


def _check_finetuning(planned: Planned, lm: LM) -> None:
    from latentwire.training.finetuning import checks

    assert isinstance(planned.stage, Finetune)
    try:
        checks.check(planned.stage.settings(), lm)
    except UserError as error:
        raise UserError(f"stages.{planned.name}: {error}") from error


def _check_wire(planned: Planned, stage: FitWire, readers: Readers) -> None:
    from latentwire.training.wire import accept, fit
    from latentwire.wires.latent.latent_wire import locate

    try:
        models = readers.models(stage.models())
        readers.prepare_wires(models, stage.readers, stage.imitated())
        start = locate(stage.start_wire) if stage.start_wire else None
        reading = {name: models[name] for name in stage.readers}
        fit.check(reading, models[stage.wire.source], stage.settings(), start)
        if stage.accept:
            accept.check(stage.data, stage.gates, stage.accept_examples)
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
    able = [name for name in pending if not set(planned.stages[name].needs) & set(pending)]
    at_hand = [
        name
        for name in able
        if isinstance(planned.stages[name].stage, Evaluate) and readers.holds(planned.stages[name].source)
    ]
    return (at_hand or able)[0]


def _record(planned: Plan, name: str, found: dict[str, Run]) -> Record:
    stage = planned.stages[name]
    parents = [found[need].record for need in stage.needs]
    return Record(
        run="",
        study=planned.study.name,
        stage=name,
        kind=stage.stage.kind,
        identity=stage.identity,
        configuration=stage.configuration,
        seeds={} if isinstance(stage.stage, Evaluate) else {"training": stage.stage.seed},
        inputs=stage.inputs,
        parents={parent.stage: Parent(run=parent.run, identity=parent.identity) for parent in parents},
        **provenance.gather(),
    )


def _of(planned: Planned) -> str:
    """The models of a stage that starts from no other."""
    stage = planned.stage
    if isinstance(stage, FitWire):
        return stage.start_wire or ", ".join(stage.models())
    return str(planned.configuration["model"])


def _carry_out(planned: Plan, name: str, made: Run, readers: Readers, log: Log) -> None:
    from latentwire.studies import carry_out

    stage = planned.stages[name].stage
    resumed = bool(made.record.times)
    with made.work(), log.to(made.folder / LOG):
        if resumed:
            made.write(**provenance.gather())
        verb = "resuming" if resumed else "starting"
        log(
            f"\n{verb} {name} ({stage.kind} from {stage.start_from or _of(planned.stages[name])}) in {made.folder}"
        )
        try:
            source = planned.stages[name].source
            if isinstance(stage, Evaluate):
                results = carry_out.evaluate(readers.load(source), stage, planned, readers, made.folder, log)
            elif isinstance(stage, Finetune):
                results = carry_out.finetune(readers.load(source, to_train=True), stage, made.folder, log)
            else:
                results = carry_out.fit_wire(stage, readers, made.folder, log)
            made.finish(results, rejected=not all(each["held"] for each in results.get("accept", ())))
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

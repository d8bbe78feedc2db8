"""Carries out a study: stages in order, each at most once, each going on where it was interrupted.

It knows no kind of stage: a stage checks, describes and runs itself (`studies.stages`).
"""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from latentwire.errors import UserError
from latentwire.evaluation import resolution
from latentwire.files import full_disk, tidy
from latentwire.process_group import ALONE, Group, lost
from latentwire.publishing import publish
from latentwire.runs import provenance
from latentwire.runs.log import Log
from latentwire.runs.store import LOG, METRICS, Parent, Record, Run, scan
from latentwire.studies import plan, study_summary
from latentwire.studies.following import Order
from latentwire.studies.model_loader import ModelLoader
from latentwire.studies.plan import Planned, StudyPlan
from latentwire.studies.shape import Summary
from latentwire.studies.spec import Study
from latentwire.studies.stages import KINDS, Stage
from latentwire.studies.stages.base import StageWork
from latentwire.training import trackers


class StageFailed(RuntimeError):
    """A stage raised; its run says `failed` and its log holds the traceback."""


@dataclass(frozen=True)
class Carried:
    """What a study came to.

    Attributes:
        plan: The study as it was carried out.
        runs: The run that counts for each stage, where there is one.
        folder: Where the study's runs and its summary are.
        summary: What `summary.json` says.
    """

    plan: StudyPlan
    runs: dict[str, Run]
    folder: Path
    summary: Summary


def run(
    study: Study,
    root: Path,
    log: Log,
    *,
    stages: Sequence[str] = (),
    fresh: bool = False,
    group: Group = ALONE,
) -> Carried:
    """Carry out a study's stages, or those named with what they need.

    Everything that can be checked is checked before the first folder exists. `summary.json` and
    `summary.md` are written after every stage.

    Args:
        root: The folder of all runs.
        log: Prints lines and keeps them in the run's `log.txt`.
        stages: Only these and what they need; all for none.
        fresh: Carry the stages out again although they are done. Their parents are not rerun; their dependants
            become stale.
        group: The processes that share the work; this is the first of them, and the others `follow`.

    Raises:
        UserError: The study cannot be carried out.
        StageFailed: A stage raised; the next call goes on from there.
    """
    trackers.check(study.trackers)
    planned = group.leader_first(lambda: plan.make(study))
    wanted = planned.needed(stages)
    named = [replica for stage in stages for replica in study.replicas(stage).values()]
    again = set(named or wanted) if fresh else set()
    counting = current(planned, root, log)
    for place in (root / study.name, *(run.folder for run in counting.values())):
        tidy(place / "*")  # a finished run is written no more: nothing else would remove what a kill left there
    _check_results(counting, again)
    for name in _dependants(planned, again):
        counting.pop(name, None)  # its parents' weights are about to change
    pending = [name for name in wanted if name in again or name not in counting or counting[name].status != "done"]
    folder = root / study.name
    models = planned.model_loader(counting)
    if pending:
        _check(planned, pending, models)
        _check_writable(folder)
    log(f"{study.name}: {len(wanted) - len(pending)} of {len(wanted)} stages are done; runs are in {folder}")
    if pending:
        for line in resolution.sentences(_samples(planned)):
            log(line)
    written = None
    while pending:
        name = _next(planned, pending, models)
        resumed = None if name in again else counting.get(name)
        at_work = resumed or Run.create(root, _record(planned, name, counting))
        counting[name] = at_work
        try:
            _carry_out(planned, name, counting, models, log, group)
        finally:
            written = study_summary.write(planned, counting, folder)
        pending.remove(name)
        if study.publish is not None:
            publish.after_stage(study.publish, counting, name, root, log)
        if at_work.status == "rejected":
            waiting = [stage for stage in _dependants(planned, [name]) if stage in pending]
            pending = [stage for stage in pending if stage not in waiting]
            log(f"{name} is rejected" + (f"; {', '.join(waiting)} cannot start from it" if waiting else ""))
    group.told(None)  # nothing is left to follow
    return Carried(planned, counting, folder, written or study_summary.write(planned, counting, folder))


def _samples(planned: StudyPlan) -> list[tuple[str, int, int]]:
    """By task, how many examples and groups evaluations answer; none where nothing is evaluated."""
    if not any(stage.stage.evaluated_arms() for stage in planned.stages.values()):
        return []
    context = planned.context
    examples = {task.name: task.examples(context.split, context.limit) for task in context.tasks}
    return [(name, len(every), len({each.group for each in every})) for name, every in examples.items()]


def current(planned: StudyPlan, root: Path, log: Callable[[str], None] = print) -> dict[str, Run]:
    """The run that counts for each stage: one with the planned identity, the newest that is done, else the newest.

    A run counts only if it started from the run that counts for its parent: two runs of one finetuning have
    the same identity and may still differ in their weights. A run whose record cannot be read does not count,
    and the log says so.
    """
    counting: dict[str, Run] = {}
    for name, stage in planned.stages.items():  # parents first
        readable, unreadable = scan(root, planned.study.name, name)
        for broken in unreadable:
            log(f"warning: {broken.problem.rstrip('.')}; this run does not count.")
        for candidate in readable:
            better = name not in counting or candidate.status == "done" or counting[name].status != "done"
            if (
                candidate.record.identity == stage.identity
                and better
                and _starts_from_counting(candidate, stage, counting)
            ):
                counting[name] = candidate
    return counting


def _check_results(counting: dict[str, Run], again: Collection[str]) -> None:
    """Refuse finished runs whose outcomes or metrics have changed; those carried out again no longer count."""
    problems: dict[str, UserError] = {}
    for name, run in counting.items():
        try:
            run.check_results()
        except UserError as error:
            problems[name] = error
    for name in [name for name in problems if name in again]:
        del counting[name], problems[name]
    if len(problems) > 1:
        stages = " ".join(f"--stage {name}" for name in problems)
        first = str(next(iter(problems.values()))).partition(";")[0]
        raise UserError(f"{first}; carry {len(problems)} changed stages out again with {stages} --fresh.")
    if problems:
        raise next(iter(problems.values()))


def _starts_from_counting(run: Run, stage: Planned, counting: dict[str, Run]) -> bool:
    for need in stage.needs:
        parent, accepted = run.record.parents.get(need), counting.get(need)
        if parent is None or accepted is None or parent.run != accepted.record.run:
            return False
    return True


def _dependants(planned: StudyPlan, names: Iterable[str]) -> list[str]:
    """The stages that need `names`, directly or not; the plan has parents before their children."""
    changed = set(names)
    dependants = []
    for name, stage in planned.stages.items():
        if changed.intersection(stage.needs):
            changed.add(name)
            dependants.append(name)
    return dependants


def _check(planned: StudyPlan, pending: Sequence[str], models: ModelLoader) -> None:
    """Let the stages that are about to run check themselves, those of one kind together."""
    groups: dict[type[Stage], dict[str, Stage]] = {}
    for name in pending:
        stage = planned.stages[name].stage
        groups.setdefault(type(stage), {})[name] = stage
    for kind in KINDS:
        if kind in groups:
            kind.check_all(groups[kind], planned.context, models)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"runs: the folder {folder} cannot be written ({error.strerror}).") from error


def _next(planned: StudyPlan, pending: Sequence[str], models: ModelLoader) -> str:
    """The first stage that can start; one whose model is in memory goes before it."""
    able = [name for name in pending if not set(planned.stages[name].needs) & set(pending)]
    at_hand = [name for name in able if planned.stages[name].stage.ready_with(planned.context, models)]
    return (at_hand or able)[0]


def _record(planned: StudyPlan, name: str, counting: dict[str, Run]) -> Record:
    stage = planned.stages[name]
    parents = [counting[need].record for need in stage.needs]
    return Record(
        run="",
        study=planned.study.name,
        stage=name,
        kind=stage.stage.kind,
        identity=stage.identity,
        configuration=stage.configuration,
        seeds=stage.stage.seeds(),
        inputs=stage.inputs,
        parents={parent.stage: Parent(run=parent.run, identity=parent.identity) for parent in parents},
        study_file=planned.study.file,
        **provenance.gather(),
    )


def _track_metrics(folder: Path) -> None:
    """Pass an evaluation's metrics on to its trackers, from the file that holds them."""
    path = folder / METRICS
    if path.is_file() and (folder / trackers.FILE).is_file():
        telling = trackers.Trackers(folder)
        telling.log(json.loads(path.read_text(encoding="utf-8")), step=0)
        telling.finish()


def _carry_out(
    planned: StudyPlan, name: str, counting: Mapping[str, Run], models: ModelLoader, log: Log, group: Group
) -> None:
    stage, run = planned.stages[name].stage, counting[name]
    resumed = bool(run.record.times)
    with run.work(), log.to(run.folder / LOG):
        if resumed:
            run.write(**provenance.gather())
        verb = "resuming" if resumed else "starting"
        log(f"\n{verb} {name} ({stage.kind} from {stage.beginning(planned.study.model)}) in {run.folder}")
        if group.size > 1:
            log(f"{group.size} processes share the work")
        group.told(
            Order(name, run.record.identity, run.folder, {each: of.folder for each, of in counting.items()})
        )
        try:
            trackers.prepare(
                run.folder, planned.study.trackers, planned.study.name, name, run.record.configuration
            )
            results = stage.run(StageWork(planned.context, models, run.folder, log, group))
            _track_metrics(run.folder)
            run.finish(results, rejected=not all(gate["held"] for gate in results.get("accept", ())))
        except Exception as error:
            _fail(name, run, error, log, group)


def _fail(name: str, run: Run, error: Exception, log: Log, group: Group) -> NoReturn:
    """Record why a stage failed, and say so."""
    if group.size > 1 and lost(error):
        _abandon(name, error, log, group)
    group.note(str(error))
    run.fail(f"{type(error).__name__}: {error}")
    log.write_only(traceback.format_exc())
    if isinstance(error, UserError):
        raise UserError(f"{name}: {error}") from error
    if full := full_disk(error):
        raise StageFailed(f"{name}: {full}") from error
    kind = type(error).__name__
    more = f"(more in {run.folder / LOG}); run the same command again to resume"
    raise StageFailed(f"{name} failed with {kind}: {error} {more}") from error


def _abandon(name: str, error: Exception, log: Log, group: Group) -> NoReturn:
    """Leave a stage interrupted because another process is gone."""
    log.write_only(traceback.format_exc())
    said = "; ".join(f"process {at}: {sentence}" for at, sentence in group.notes().items())
    why = said or str(error).splitlines()[0]
    log(f"{name} is interrupted: another of the {group.size} processes is gone ({why})")
    raise SystemExit(1) from error

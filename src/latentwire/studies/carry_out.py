"""One stage, carried out in its run folder: an evaluation, a finetuning or the training of a wire."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from latentwire.evaluation.evaluate import evaluate as evaluate_tasks
from latentwire.evaluation.outcomes import Outcome, read_outcomes, write_outcomes
from latentwire.evaluation.prompts_shown import departures
from latentwire.evaluation.sizes import message_sizes
from latentwire.evaluation.summary import summarize
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.runs.log import Log, duration
from latentwire.studies.models import Readers
from latentwire.studies.plan import Plan
from latentwire.studies.report import left_out
from latentwire.studies.stages import Evaluate, Finetune, FitWire
from latentwire.training.objectives import Imitate
from latentwire.training.trainee import Trained
from latentwire.wires.latent.latent_wire import BEST, locate

OUTCOMES, METRICS = "outcomes.jsonl", "metrics.json"


def evaluate(lm: LM, stage: Evaluate, plan: Plan, readers: Readers, folder: Path, log: Log) -> dict[str, Any]:
    """Answer task by task, keeping every finished task's outcomes, and write `metrics.json`.

    Returns the floors of the tasks (see `Evaluation`), how many prompts are unstable, by arm and task how many
    examples its variant could not change (`skipped`), the partners of deranged ones (`Arm.partner_types`) and
    sizes (`evaluation.sizes.Size`), the arms that leak or whose contexts are encoded with the question in sight,
    tokens and seconds.

    Raises:
        UserError: a prompt is longer than the model.
    """
    split, limit = plan.study.split, plan.study.limit
    wires = stage.read(readers.wire)
    readers.prepare_sources(lm, wires)
    suppressed = stage.begin_suppress_tokens
    arms = {wire.label: arm for wire, arm in zip(wires, stage.arms, strict=True)}
    sizes = {task.name: len(arms) * len(task.examples(split, limit)) for task in plan.tasks}
    total = sum(sizes.values())
    outcomes = _finished(folder, sizes.keys())
    there = {outcome.task for outcome in outcomes}
    for sentence in departures({None: lm}, [replace(arm, reader=None) for arm in wires]):
        log(sentence)
    for task in plan.tasks:
        if task.remark:
            log(task.remark)
        if task.format is not None and task.format != lm.format:
            log(f"{task.name}: read in the benchmark's own words, not in the prompt format of {lm.name}")
    done = sum(sizes[task] for task in there)  # with the examples that an arm skips, as progress counts them
    if done:
        log(f"{done:,} of {total:,} answers are there already")
    floors: dict[str, dict[str, float]] = {}
    unstable: dict[str, int] = {}
    partners: dict[str, dict[str, dict[str, int]]] = {}
    started = time.monotonic()
    with log.progress(folder.parent.name, "answers") as report:

        def answered(arm: str, task: str, count: int) -> None:
            nonlocal done
            done += count
            report(done, total)

        for task in plan.tasks:
            # With no wires it tokenizes and counts, which an earlier attempt's outcomes do not hold.
            left = [] if task.name in there else wires
            found = evaluate_tasks(
                lm, [task], left, split=split, limit=limit, progress=answered, begin_suppress_tokens=suppressed
            )
            floors |= found.floors
            unstable |= found.unstable
            for wire in wires:
                if types := wire.partner_types(task.examples(split, limit), task.name):
                    partners.setdefault(arms[wire.label], {})[task.name] = types
            if left:
                outcomes += [replace(outcome, arm=arms[outcome.arm]) for outcome in found.outcomes]
                write_outcomes(folder / OUTCOMES, outcomes)
    write_atomically(folder / METRICS, json.dumps(summarize(outcomes), indent=1) + "\n")
    seconds = time.monotonic() - started
    log(f"{len(outcomes):,} answers in {duration(seconds)}")
    measured = message_sizes(lm, plan.tasks, dict(zip(stage.arms, wires, strict=True)), split, limit)
    return {
        "floors": floors,
        "unstable": unstable,
        "skipped": _skipped(outcomes, arms.values(), {task: size // len(arms) for task, size in sizes.items()}),
        "partners": partners,
        "leaks": [arm for wire, arm in zip(wires, stage.arms, strict=True) if wire.leaks],
        "question_aware": [arm for wire, arm in zip(wires, stage.arms, strict=True) if wire.wire.question_aware],
        "tokens": sum(outcome.tokens for outcome in outcomes),
        "seconds": round(seconds, 1),
        "sizes": {arm: {task: asdict(size) for task, size in of.items()} for arm, of in measured.items()},
    }


def _skipped(
    outcomes: Sequence[Outcome], arms: Iterable[str], sizes: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """By arm and task how many examples have no outcome, where any has none; an earlier attempt's count too."""
    answered = Counter((outcome.arm, outcome.task) for outcome in outcomes)
    left = {arm: {task: size - answered[arm, task] for task, size in sizes.items()} for arm in arms}
    found = {arm: {task: count for task, count in of.items() if count} for arm, of in left.items()}
    return {arm: of for arm, of in found.items() if of}


def _finished(folder: Path, tasks: Collection[str]) -> list[Outcome]:
    """What an earlier attempt finished: outcomes are written task by task, each with all of its arms."""
    path = folder / OUTCOMES
    found = read_outcomes(path) if path.exists() else []
    return [outcome for outcome in found if outcome.task in tasks]


def finetune(lm: LM, stage: Finetune, folder: Path, log: Log) -> dict[str, Any]:
    """Train `lm` in place; see `training.finetune.finetune` for what is written and raised."""
    from latentwire.training.finetuning import finetune as finetuning

    with log.progress(folder.parent.name, "steps") as report:
        found = finetuning.finetune(lm, stage.settings(), folder, log=log, progress=report)
    return _told(found, log)


def fit_wire(stage: FitWire, readers: Readers, folder: Path, log: Log) -> dict[str, Any]:
    """Train a wire before its readers and hold it against its gates; see `training.fit.fit.fit` and `.accept`."""
    from latentwire.training.wire import accept
    from latentwire.training.wire.fit import fit

    models, settings = readers.models(stage.models()), stage.settings(readers.wire)
    followed = (each.finished for each in settings.objectives if isinstance(each, Imitate))
    imitated = [each for each in followed if each is not None]
    readers.prepare_wires(models, stage.readers, imitated)
    reading = {name: models[name] for name in stage.readers}
    start = readers.wire(stage.start_from, stage.checkpoint) if stage.start_from else None
    if stage.start_wire is not None:
        start = locate(stage.start_wire)
    with log.progress(folder.parent.name, "steps") as report:
        found = fit(
            reading,
            models[stage.wire.source],
            settings,
            folder,
            start=start,
            log=log,
            progress=report,
        )
    told = _told(found, log)
    if stage.accept:
        wire, gates = folder / BEST, stage.gates
        told["accept"] = accept.judge(wire, reading, stage, gates, stage.accept_examples, folder, log)
    return told


def _told(found: Trained, log: Log) -> dict[str, Any]:
    lost = left_out(found.skipped)
    log(
        f"{found.steps:,} steps in {duration(found.seconds)}, ended by: {found.stopped}; "
        f"best evaluation loss {found.best_loss:.4f} at step {found.best_step:,}{f'; {lost}' if lost else ''}"
    )
    return asdict(found)

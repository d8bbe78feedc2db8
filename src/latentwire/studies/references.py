"""Checks that every stage, arm and task that a study names exists, and only once."""

from __future__ import annotations

from collections.abc import Sequence

from latentwire.errors import UserError
from latentwire.evaluation.metrics import METRICS
from latentwire.evaluation.summarize import rows
from latentwire.studies.spec import ORACLES, Study
from latentwire.studies.stages.base import known
from latentwire.tasks.base import Task

_FROZEN_ONLY = ("dtype", "device_map", "bits", "max_memory")
"""Fields of `loading` that a model which is finetuned does not take."""
_PLACES = ("device_map", "max_memory")
"""Fields of `loading` that spread one model over devices."""


def check(study: Study) -> None:
    """Check stages, arms and names.

    Raises:
        UserError: One is missing or appears twice, or stages start from each other in a circle.
    """
    for model, loading in study.loading.items():
        if model not in study.models():
            names = dict.fromkeys([*study.models(), *study.sources()])
            known(f"loading.{model}", model, names, "a model of this study")
        finetuned = model == study.model and any(stage.changes_model for stage in study.stages.values())
        if finetuned and (keys := [key for key in _FROZEN_ONLY if getattr(loading, key) is not None]):
            raise UserError(
                f"loading.{model}.{keys[0]}: found a model that is finetuned, expected one that only reads; "
                "a model that is finetuned takes revision and trust_remote_code."
            )
    for model in study.prompts:
        if model not in study.models():
            names = dict.fromkeys([*study.models(), *study.sources()])
            known(f"prompts.{model}", model, names, "a model of this study")
    for name, stage in study.stages.items():
        stage.check_references(name, study.stages, study.model)
    if study.effects is not None:
        for key, reading in study.effects.readings():
            _check_reading(study, f"effects.{key}", reading)
        finetunings = [name for name, stage in study.stages.items() if stage.changes_model]
        finetunings += [
            name
            for name in study.pooled_stages()
            if study.stages[next(iter(study.replicas(name).values()))].changes_model
        ]
        for name in study.effects.after:
            known(f"effects.after.{name}", name, finetunings, "a finetune stage")
    for name, readings in study.oracles.items():
        for at, reading in enumerate(readings):
            _check_reading(study, f"oracles.{name}.{at}", reading)
    for name in study.stages:
        if name.lower() in ("summary.json", "summary.md"):
            raise UserError(f"stages.{name}: found the name of the study's own file, expected another name.")
    if study.oracles and ORACLES in study.stages:
        raise UserError(f"stages.{ORACLES}: found a stage called so beside oracles, expected another name.")
    for at, comparison in enumerate(study.comparisons):
        _check_reading(study, f"comparisons.{at}.a", comparison.a, oracles=True)
        _check_reading(study, f"comparisons.{at}.b", comparison.b, oracles=True)
    for at, gate in enumerate(study.gates):
        if study.effects is None:
            raise UserError("gates: found some without effects, expected effects: gates are conditions on them.")
        valid = [reading for effect, reading in study.effects.derived() if effect == gate.effect]
        known(f"gates.{at}.of", gate.of, valid, f"a reading that {gate.effect} is derived for")
    _once("comparisons", [each.name for each in study.comparisons])
    _once("gates", [each.name for each in study.gates])


def check_processes(study: Study, processes: int) -> None:
    """Refuse to spread a model over devices in a command of several processes, which would take the same ones.

    Raises:
        UserError: One sentence with the key.
    """
    if processes == 1:
        return
    for model, loading in study.loading.items():
        for key in _PLACES:
            if getattr(loading, key) is not None:
                raise UserError(
                    f"loading.{model}.{key}: found one in a command of {processes} processes, expected none: each "
                    "process holds all of a model on a device of its own."
                )


def reported_tasks(tasks: Sequence[Task]) -> list[str]:
    """Names of tasks, families and `macro`, which for a single task is that task."""
    return list(dict.fromkeys([*rows(task.name for task in tasks), "macro"]))


def check_tasks(study: Study, tasks: Sequence[Task]) -> None:
    """Check that comparisons and gates name tasks, families and metrics that are reported."""
    reported = reported_tasks(tasks)
    for at, comparison in enumerate(study.comparisons):
        known(f"comparisons.{at}.task", comparison.task, reported, "a task of this study")
        if comparison.metric is not None:
            name = comparison.task
            members = [task for task in tasks if name in ("macro", task.name) or task.name.startswith(f"{name}/")]
            shared = [m for m in METRICS[members[0].answer] if all(m in METRICS[each.answer] for each in members)]
            known(f"comparisons.{at}.metric", comparison.metric, [*shared, "nll"], f"a metric of {name}")
    for name, metric in (study.effects.metrics if study.effects else {}).items():
        answers = {task.name: task.answer for task in tasks}
        known(f"effects.metrics.{name}", name, answers, "a task of this study")
        known(f"effects.metrics.{name}", metric, METRICS[answers[name]], f"a metric of {name}")
    for at, gate in enumerate(study.gates):
        known(f"gates.{at}.task", gate.task, reported, "a task of this study")


def _check_reading(study: Study, key: str, reading: str, *, oracles: bool = False) -> None:
    stage, slash, arm = reading.partition("/")
    if oracles and study.oracles and stage == ORACLES:
        known(key, arm, study.oracles, "an oracle")
        return
    evaluations = {name: arms for name, each in study.stages.items() if (arms := each.evaluated_arms())}
    for name in study.pooled_stages():
        if arms := study.stages[next(iter(study.replicas(name).values()))].evaluated_arms():
            evaluations[name] = arms
    if not slash:
        raise UserError(f"{key}: found {reading!r}, expected STAGE/ARM, such as baseline/text.")
    known(key, stage, evaluations, "an evaluate stage")
    known(key, arm, evaluations[stage], f"an arm of {stage}")
    if ":counterfactual" in evaluations[stage][arm]:
        raise UserError(f"{key}: found {reading}, whose right answers differ from the tasks', expected another.")


def _once(key: str, names: list[str]) -> None:
    for at, name in enumerate(names):
        if name in names[:at]:
            raise UserError(f"{key}.{at}.name: found {name!r} a second time, expected every name once.")

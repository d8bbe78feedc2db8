"""Whether every stage, arm and task that a study speaks of is there, once, and nothing waits for itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from latentwire.errors import UserError, one_of
from latentwire.evaluation.metrics import METRICS
from latentwire.evaluation.summary import rows
from latentwire.studies.spec import ORACLES, Study
from latentwire.studies.stages import TRAINED, Evaluate, Finetune, FitWire, Stage
from latentwire.tasks.base import Task
from latentwire.training.objectives import Imitate

_KINDS: dict[type, str] = {Finetune: "finetune", FitWire: "wire"}


def check(study: Study) -> None:
    """Check stages, arms and names.

    Raises:
        UserError: one is missing or comes twice, or stages start from each other in a circle.
    """
    for model in study.loading:
        if model not in study.models():
            known = dict.fromkeys([*study.models(), *study.sources()])
            _known(f"loading.{model}", model, known, "a model of this study")
        if model == study.model and any(isinstance(stage, Finetune) for stage in study.stages.values()):
            raise UserError(f"loading.{model}: found a model that is finetuned, expected one that only reads.")
    for model in study.prompts:
        if model not in study.models():
            known = dict.fromkeys([*study.models(), *study.sources()])
            _known(f"prompts.{model}", model, known, "a model of this study")
    for name, stage in study.stages.items():
        key = f"stages.{name}.start_from"
        if stage.start_from is not None:
            wanted: type = FitWire if isinstance(stage, FitWire) else Finetune
            _known(key, stage.start_from, study.stages, f"a {_KINDS[wanted]} stage")
            _refuse_circle(study, (name,))
            start = study.stages[stage.start_from]
            if not isinstance(start, wanted):
                what = {"evaluate": "an evaluation", "finetune": "a finetuning", "wire": "a wire"}[start.kind]
                raise UserError(f"{key}: found {stage.start_from!r}, {what}; expected a {_KINDS[wanted]} stage.")
        if isinstance(stage, FitWire) and stage.start_from is not None and stage.new_reader is not None:
            _check_extended(name, stage, study.stages[stage.start_from])
        if isinstance(stage, FitWire):
            _check_imitated(study, name, stage)
        if isinstance(stage, Evaluate):
            fits = [each for each, of in study.stages.items() if isinstance(of, FitWire)]
            for arm, text in stage.arms.items():
                if text.startswith(TRAINED):
                    found = text.removeprefix(TRAINED).split(":")[0]
                    key = f"stages.{name}.arms.{arm}"
                    if not fits:
                        raise UserError(f"{key}: found {text!r}, but no stage of this study trains a wire.")
                    _known(key, found, fits, "a wire stage")
                    fit = study.stages[found]
                    reader = stage.model or study.model
                    if isinstance(fit, FitWire) and reader not in fit.wire.adapters:
                        read_by = ", ".join(fit.wire.adapters)
                        raise UserError(f"{key}: found {reader} to read, expected a reader of {found}: {read_by}.")
    if study.effects is not None:
        for key, reading in study.effects.readings():
            _check_reading(study, f"effects.{key}", reading)
        finetunings = [name for name, stage in study.stages.items() if isinstance(stage, Finetune)]
        for name in study.effects.after:
            _known(f"effects.after.{name}", name, finetunings, "a finetune stage")
    for name, readings in study.oracles.items():
        for at, reading in enumerate(readings):
            _check_reading(study, f"oracles.{name}.{at}", reading)
    if study.oracles and ORACLES in study.stages:
        raise UserError(f"stages.{ORACLES}: found a stage called so beside oracles, expected another name.")
    for at, comparison in enumerate(study.comparisons):
        _check_reading(study, f"comparisons.{at}.a", comparison.a, oracles=True)
        _check_reading(study, f"comparisons.{at}.b", comparison.b, oracles=True)
    for at, gate in enumerate(study.gates):
        if study.effects is None:
            raise UserError("gates: found some without effects, expected effects: gates are conditions on them.")
        valid = [reading for effect, reading in study.effects.derived() if effect == gate.effect]
        _known(f"gates.{at}.of", gate.of, valid, f"a reading that {gate.effect} is derived for")
    _once("comparisons", [each.name for each in study.comparisons])
    _once("gates", [each.name for each in study.gates])


def _check_extended(name: str, stage: FitWire, start: Stage) -> None:
    """Refuse a new reader for another wire than the one that the earlier stage trains."""
    assert isinstance(start, FitWire)
    if stage.new_reader in start.wire.adapters:
        raise UserError(
            f"stages.{name}.new_reader: found {stage.new_reader!r}, expected one that {stage.start_from} has not."
        )
    rest = {reader: each for reader, each in stage.wire.adapters.items() if reader != stage.new_reader}
    if stage.wire.model_copy(update={"adapters": rest}) != start.wire:
        raise UserError(
            f"stages.{name}.wire: found another wire than that of {stage.start_from}, expected the same with "
            f"{stage.new_reader} as one reader more."
        )


def reported_tasks(tasks: Sequence[Task]) -> list[str]:
    """Names of tasks, families and `macro`, which for a single task is that task."""
    return list(dict.fromkeys([*rows(task.name for task in tasks), "macro"]))


def check_tasks(study: Study, tasks: Sequence[Task]) -> None:
    """Check that comparisons and gates speak of tasks, families and metrics that are reported."""
    reported = reported_tasks(tasks)
    for at, comparison in enumerate(study.comparisons):
        _known(f"comparisons.{at}.task", comparison.task, reported, "a task of this study")
        if comparison.metric is not None:
            name = comparison.task
            members = [task for task in tasks if name in ("macro", task.name) or task.name.startswith(f"{name}/")]
            shared = [m for m in METRICS[members[0].answer] if all(m in METRICS[each.answer] for each in members)]
            _known(f"comparisons.{at}.metric", comparison.metric, [*shared, "nll"], f"a metric of {name}")
    for at, gate in enumerate(study.gates):
        _known(f"gates.{at}.task", gate.task, reported, "a task of this study")


def _check_imitated(study: Study, name: str, stage: FitWire) -> None:
    """Refuse an imitation of a stage that trains no wire, or one that its readers cannot read."""
    for at, objective in enumerate(stage.objectives):
        if not isinstance(objective, Imitate) or not objective.wire.startswith(TRAINED):
            continue
        key, found = f"stages.{name}.objectives.{at}.wire", objective.wire.removeprefix(TRAINED)
        _known(key, found, [each for each, of in study.stages.items() if isinstance(of, FitWire)], "a wire stage")
        _refuse_circle(study, (name,))
        followed = study.stages[found]
        assert isinstance(followed, FitWire)
        for reader in [objective.reader] if objective.reader else stage.readers:
            if reader not in followed.wire.adapters:
                read_by = ", ".join(followed.wire.adapters)
                raise UserError(
                    f"{key}: found a wire that {reader} cannot read, expected one of its own: {read_by}."
                )


def _refuse_circle(study: Study, path: tuple[str, ...]) -> None:
    stage = study.stages[path[-1]]
    for need in stage.needs():
        if need not in study.stages:
            continue  # told when that stage's turn comes
        if need in path:
            circle = [*path[path.index(need) :], need]
            found = "the stage itself" if len(circle) == 2 else f"a circle ({' from '.join(circle)})"
            key = "start_from" if stage.start_from == need else "objectives"
            raise UserError(f"stages.{path[-1]}.{key}: found {found}, expected an earlier stage.")
        _refuse_circle(study, (*path, need))


def _check_reading(study: Study, key: str, reading: str, *, oracles: bool = False) -> None:
    stage, slash, arm = reading.partition("/")
    if oracles and study.oracles and stage == ORACLES:
        _known(key, arm, study.oracles, "an oracle")
        return
    evaluations = {name: each for name, each in study.stages.items() if isinstance(each, Evaluate)}
    if not slash:
        raise UserError(f"{key}: found {reading!r}, expected STAGE/ARM, such as baseline/text.")
    _known(key, stage, evaluations, "an evaluate stage")
    _known(key, arm, evaluations[stage].arms, f"an arm of {stage}")
    if evaluations[stage].arms[arm].endswith(":counterfactual"):
        raise UserError(
            f"{key}: found {reading}, whose right answers are others than the tasks', expected another."
        )


def _known(key: str, found: str, valid: Iterable[str], what: str) -> None:
    names = list(valid)
    if found not in names:
        raise UserError(f"{key}: found {found!r}, expected {what}: {one_of(found, names)}.")


def _once(key: str, names: list[str]) -> None:
    for at, name in enumerate(names):
        if name in names[:at]:
            raise UserError(f"{key}.{at}.name: found {name!r} a second time, expected every name once.")

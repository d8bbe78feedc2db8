"""A study's results, `summary.json`, computed from the outcomes of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from latentwire.evaluation.combinations import UNDEFINED
from latentwire.evaluation.joint import union
from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.pooled import PooledComparison, compare_pooled, estimate_pooled, shared_by_seed
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import estimate, members, shared
from latentwire.evaluation.summarize import Metrics, Number, agreement, by_arm, invalid, summarize
from latentwire.files import write_atomically
from latentwire.runs.identity import identity
from latentwire.runs.store import ENDED, OUTCOMES, Run
from latentwire.studies import summary_tables
from latentwire.studies.claims import Condition, StudyComparison
from latentwire.studies.derived import Derived, derive
from latentwire.studies.plan import StudyPlan
from latentwire.studies.shape import Compared, StageSummary, Summary
from latentwire.studies.spec import ORACLES, Study
from latentwire.studies.stages.base import TRAINED
from latentwire.version import __version__

JSON, MARKDOWN = "summary.json", "summary.md"
_FORM = 14
"""Raise it whenever a summary of the same runs would hold something else."""


def build(plan: StudyPlan, runs: Mapping[str, Run]) -> Summary:
    """The summary of all runs so far."""
    stages = {name: _stage(runs.get(name)) for name in plan.study.stages}
    readings = {
        f"{name}/{arm}": outcomes
        for name, stage in plan.study.stages.items()
        if stage.evaluated_arms() and stages[name]["status"] == "done"
        for arm, outcomes in by_arm(_outcomes(runs[name].folder)).items()
    }
    unreadable, agreements = _invalid(plan, readings), _agreements(plan, readings)
    readings |= _oracles(plan.study, readings)
    comparisons, further = _compare(plan.study, readings)
    effects = _effects(plan, runs, readings)
    return {
        "study": plan.study.name,
        "stages": stages,
        "comparisons": comparisons,
        "derived": {
            "comparisons": further,
            "effects": [asdict(each) for each in effects],
            "invalid": unreadable,
            "agreement": agreements,
            "oracles": {
                name: {"of": list(of), "metrics": summarize(readings[f"{ORACLES}/{name}"])[name]}
                for name, of in plan.study.oracles.items()
                if f"{ORACLES}/{name}" in readings
            },
            "pooled": _pooled(plan.study, readings, plan.reported),
            "gates": [_judge(gate, effects) for gate in plan.study.gates],
            "repeats": _repeats(plan),
            "outline": _outline(plan),
            **_sections(plan.study, runs),
        },
    }


def _outline(plan: StudyPlan) -> dict[str, Any]:
    """What the study asks, for whoever has its folder and not its file: its settings, and each stage's needs."""
    study = plan.study
    return {
        "model": study.model,
        "split": study.split,
        "limit": study.limit,
        "tasks": [task.name for task in plan.tasks],
        "seeds": sorted({seed for stage in study.stages.values() for seed in stage.seeds().values()}),
        "stages": {
            name: {
                "kind": stage.kind,
                "needs": stage.needs(),
                "beginning": stage.beginning(study.model),
                "arms": dict(stage.evaluated_arms()),
            }
            for name, stage in study.stages.items()
        },
    }


def _sections(study: Study, runs: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
    """What each finished stage reports, by the section that its kind names."""
    sections: dict[str, dict[str, Any]] = {"finetunings": {}, "evaluations": {}}
    for name, stage in study.stages.items():
        if name in runs and runs[name].status in ENDED:
            sections[stage.section][name] = stage.summarise(runs[name].record.results or {})
    return sections


def _repeats(plan: StudyPlan) -> list[list[str]]:
    """Groups of stages with the same configuration, inputs and starts under different names."""
    alike: dict[str, list[str]] = {}
    for name in plan.study.stages:
        alike.setdefault(plan.stages[name].identity, []).append(name)
    return [names for names in alike.values() if len(names) > 1]


def write(plan: StudyPlan, runs: Mapping[str, Run], folder: Path) -> Summary:
    """Write `summary.json` and `summary.md`, unless they exist and are made of the same runs and study."""
    made_of = _basis(plan, runs)
    there = _read(folder / JSON)
    if there is not None and there["derived"].get("made_of") == made_of and (folder / MARKDOWN).exists():
        return there
    made = build(plan, runs)
    made["derived"]["made_of"] = made_of
    write_atomically(folder / MARKDOWN, summary_tables.markdown(plan.study, runs, made))
    write_atomically(folder / JSON, json.dumps(made, indent=1) + "\n")
    return made


def failed_gates(summary: Summary) -> list[str]:
    """Names of the gates that were judged and did not hold."""
    return [gate["name"] for gate in summary["derived"]["gates"] if gate["held"] is False]


def rejected(summary: Summary) -> list[str]:
    """Names of the stages whose wire did not hold a gate of its `accept`."""
    return [name for name, stage in summary["stages"].items() if stage["status"] == "rejected"]


def _basis(plan: StudyPlan, runs: Mapping[str, Run]) -> str:
    """Hash of everything that a summary is computed from."""
    there = {name: [run.record.run, run.status, run.record.error] for name, run in runs.items()}
    asked = plan.study.model_dump(mode="json")
    return identity({"study": asked, "runs": there, "version": __version__, "form": _FORM})


def _read(path: Path) -> Summary | None:
    try:
        summary: Summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and isinstance(summary.get("derived"), dict) else None


def _stage(run: Run | None) -> StageSummary:
    if run is None:
        return {"run": None, "status": "not run", "metrics": {}}
    metrics: Metrics = run.metrics() if run.status in ENDED else {}
    return {"run": run.record.run, "status": run.status, "metrics": metrics}


@cache
def _outcomes(folder: Path) -> list[Outcome]:
    """The outcomes of a finished run, which no longer change."""
    return read_outcomes(folder / OUTCOMES)


def _compare(
    study: Study, readings: Mapping[str, list[Outcome]]
) -> tuple[list[Compared], dict[str, dict[str, Any]]]:
    found: dict[str, tuple[StudyComparison, PooledComparison, str]] = {}
    for asked in study.comparisons:
        sides = [_over_seeds(study, readings, each) for each in (asked.a, asked.b)]
        if all(sides):
            a, b = shared_by_seed([{s: members(of, asked.task) for s, of in side.items()} for side in sides])
            sample = next(iter(a.values()))
            if not sample:
                continue  # variants may leave out examples, and these two have none in common
            names = {next(iter(outcome.metrics)) for outcome in sample}
            metric = asked.metric or (names.pop() if len(names) == 1 else "primary")
            found[asked.name] = asked, compare_pooled(a, b, asked.metric), metric
    primary = [each.name for each in study.comparisons if each.primary]
    # A planned comparison that cannot be made yet still counts: leaving it out would make the others look better.
    corrected = dict(zip(primary, holm([found[n][1].p if n in found else 1.0 for n in primary]), strict=True))
    compared: list[Compared] = []
    further = {}
    for name, (asked, made, metric) in found.items():
        resolved = made.resolved and corrected.get(name, 0.0) < 0.05
        compared.append(
            {
                "name": name,
                "task": asked.task,
                "metric": metric,
                "a": asked.a,
                "b": asked.b,
                "difference": made.difference,
                "low": made.low,
                "high": made.high,
                "p": made.p,
                "resolved": resolved,
            }
        )
        further[name] = {
            "primary": asked.primary,
            "p_holm": corrected.get(name),
            "resolvable": made.resolvable,
            "n": made.n,
            "groups": made.groups,
            "single_seed": _of_one_seed(study, asked.a) or _of_one_seed(study, asked.b),
            "seeds": [made.seeds_a, made.seeds_b],
        }
    return compared, further


def _invalid(plan: StudyPlan, readings: Mapping[str, list[Outcome]]) -> dict[str, dict[str, Number]]:
    """By reading and task answered in words, the share of answers that could not be read."""
    rates: dict[str, dict[str, Number]] = {}
    for reading, outcomes in readings.items():
        for task in plan.tasks:
            if task.answer != "choice" and (part := [o for o in outcomes if o.task == task.name]):
                rates.setdefault(reading, {})[task.name] = invalid(part)
    return rates


def _agreements(plan: StudyPlan, readings: Mapping[str, list[Outcome]]) -> dict[str, dict[str, Number]]:
    """By the readings of one wire by several readers, and by task, the share of examples answered alike."""
    shares: dict[str, dict[str, Number]] = {}
    for name, stage in plan.study.stages.items():
        for arms in stage.read_together():
            parts = [f"{name}/{arm}" for arm in arms]
            if all(part in readings for part in parts):
                for task in plan.tasks:
                    alike = agreement([[o for o in readings[part] if o.task == task.name] for part in parts])
                    if alike is not None:
                        shares.setdefault(" + ".join(parts), {})[task.name] = alike
    return shares


def _oracles(study: Study, readings: Mapping[str, list[Outcome]]) -> dict[str, list[Outcome]]:
    """The oracles that have all their readings, as readings of their own."""
    there = {name: of for name, of in study.oracles.items() if set(of) <= readings.keys()}
    best = {name: union(shared([readings[each] for each in of])) for name, of in there.items()}
    return {
        f"{ORACLES}/{name}": [replace(each, arm=name) for each in outcomes]
        for name, outcomes in best.items()
        if outcomes
    }


def _over_seeds(study: Study, readings: Mapping[str, list[Outcome]], reading: str) -> dict[str, list[Outcome]]:
    """A reading's outcomes by seed; empty as long as one of them is missing."""
    stage, _, arm = reading.partition("/")
    named = {seed: f"{replica}/{arm}" for seed, replica in study.replicas(stage).items()}
    return {seed: readings[name] for seed, name in named.items()} if set(named.values()) <= readings.keys() else {}


def _pooled(study: Study, readings: Mapping[str, list[Outcome]], tasks: Sequence[str]) -> dict[str, Any]:
    """By reading over several seeds and by task, the primary metric over all of them, and under each."""
    pooled: dict[str, dict[str, Any]] = {}
    for stage in study.pooled_stages():
        first = next(iter(study.replicas(stage).values()))
        for arm in study.stages[first].evaluated_arms():
            over = _over_seeds(study, readings, f"{stage}/{arm}")
            for task in tasks if over else ():
                part = {seed: members(outcomes, task) for seed, outcomes in over.items()}
                (part,) = shared_by_seed([part])
                if next(iter(part.values())):
                    numbers = asdict(estimate_pooled(part))
                    numbers["by_seed"] = {seed: estimate(outcomes).value for seed, outcomes in part.items()}
                    pooled.setdefault(f"{stage}/{arm}", {})[task] = numbers
    return pooled


def _of_one_seed(study: Study, reading: str) -> bool:
    """Whether a reading depends on a training that has one seed."""
    return _trained(study, reading) and len(study.replicas(reading.partition("/")[0])) == 1


def _trained(study: Study, reading: str) -> bool:
    """Whether a reading depends on a training."""
    for part in study.parts(reading):
        stage, arm = part.split("/")
        evaluation = study.stages[stage]
        if evaluation.start_from is not None or evaluation.evaluated_arms()[arm].startswith(TRAINED):
            return True
    return False


def _effects(plan: StudyPlan, runs: Mapping[str, Run], readings: Mapping[str, list[Outcome]]) -> list[Derived]:
    study, effects = plan.study, plan.study.effects
    if effects is None or not _over_seeds(study, readings, effects.baseline):
        return []
    named = list(dict.fromkeys(reading for _, reading in effects.readings()))
    blind = [f"{reading.split('/')[0]}/{effects.none}" for reading in named]
    over = {name: _over_seeds(study, readings, name) for name in dict.fromkeys([*named, *blind])}
    concerned = {name: outcomes for name, outcomes in over.items() if outcomes}
    first = next(iter(study.replicas(effects.baseline.split("/")[0]).values()))
    results = runs[first].record.results or {}
    return derive(effects, plan.reported, concerned, results["floors"])


def _judge(gate: Condition, effects: list[Derived]) -> dict[str, Any]:
    """A gate with its number, and the verdict.

    `held`: whether the whole interval is inside the bound; None if there is no number yet. `resolved`: whether the
    whole interval is on one side of it.
    """
    judged: dict[str, Any] = {**gate.model_dump(), **asdict(UNDEFINED), "held": None, "resolved": None}
    wanted = (gate.effect, gate.of, gate.task)
    for found in effects:
        if (found.effect, found.of, found.task) == wanted:
            number = found.above_floor if gate.above_floor else found.raw
            judged |= asdict(number)
            inside = [_within(gate, value) for value in (number.value, number.low, number.high)]
            judged |= {"held": all(inside), "resolved": len(set(inside)) == 1}
    return judged


def _within(gate: Condition, value: float | None) -> bool:
    if value is None:
        return False
    return value >= gate.at_least if gate.at_least is not None else value <= (gate.at_most or 0.0)

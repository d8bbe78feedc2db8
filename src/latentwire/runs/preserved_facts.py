"""What a machine knows of a run that is preserved: the command, the hardware, the numbers, the files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.summarize import by_arm, invalid
from latentwire.runs import manifest
from latentwire.runs.log import duration
from latentwire.runs.run_tables import in_words
from latentwire.runs.store import ENDED, LOG, OUTCOMES, Run, runs

_SETTINGS = (
    "model",
    "wire",
    "arms",
    "steps",
    "rows",
    "row_tokens",
    "passages",
    "questions",
    "accumulation",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "schedule",
    "precision",
    "eval_steps",
    "eval_samples",
    "seed",
    "tasks",
    "split",
    "limit",
    "dtype",
)


def fields(run: Run, root: Path, parents: Sequence[Run], cite: Sequence[str]) -> dict[str, str]:
    """The fields of a manifest's entry that need no person.

    Args:
        run: the run.
        root: the folder of all runs, where evaluations of a training are looked up.
        parents: the runs that it starts from.
        cite: files to cite first.
    """
    return {
        manifest.COMMAND: _command(run),
        manifest.STUDY: _study(run),
        manifest.HARDWARE: _hardware(run),
        manifest.SETTINGS: _settings(run),
        manifest.METRICS: _listed(_metrics(run, root, parents)),
        manifest.NOTED: _listed(_noted(run)),
        manifest.ARTIFACTS: _listed(_artifacts(run, cite)),
        manifest.LINEAGE: _listed(_lineage(run, parents)),
    }


def _listed(lines: Iterator[str]) -> str:
    """Lines as a list below their field."""
    several = list(lines)
    return several[0] if len(several) == 1 else "".join(f"\n  - {line}" for line in several)


def _command(run: Run) -> str:
    if not run.record.command:
        return "not recorded: an older version wrote this run"
    return f"`{shlex.join(run.record.command)}`"


def _study(run: Run) -> str:
    file = run.record.study_file
    if file is None:
        return "of no study file: the command says all" if run.record.command else "not recorded"
    changes = f", changed by {', '.join(f'`{change}`' for change in file.changes)}" if file.changes else ""
    preset = f", preset `{file.preset}`" if file.preset else ""
    return f"`{file.path}`{changes}{preset}; its text is in `run.json` under `study_file`"


def _hardware(run: Run) -> str:
    machine = run.record.machine
    parts = []
    if "accelerator" in machine:
        parts.append(f"{machine.get('accelerators', 1)} x {machine['accelerator']}")
    parts.append(
        f"{machine.get('cores', '?')} cores of {machine.get('processor', 'a processor that was not recorded')}"
    )
    parts.append(f"{machine.get('threads', '?')} threads, {machine.get('platform', '')}")
    took = "" if run.seconds is None else f"; took {duration(run.seconds)}"
    return ", ".join(parts) + took


def _settings(run: Run) -> str:
    configuration = run.record.configuration
    shown = [f"{key}={_short(configuration[key])}" for key in _SETTINGS if configuration.get(key) is not None]
    seeds = [f"seed {name} {seed}" for name, seed in run.record.seeds.items()]
    versions = [f"{name} {version}" for name, version in run.record.versions.items()]
    git = run.record.git
    code = f"; commit {git['commit']}{' WITH CHANGES' if git['changed'] else ''}" if git else ""
    return f"{', '.join([*shown, *seeds])}; {', '.join(versions)}{code}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _metrics(run: Run, root: Path, parents: Sequence[Run]) -> Iterator[str]:
    """Peak, final, degradation, baselines, floors and invalid answers."""
    for trained in (run, *parents):
        yield from _training(trained)
    evaluations = [run] if OUTCOMES in run.record.artifacts else _evaluations_of(run, root)
    for each in evaluations:
        yield from _evaluation(each)
    told = [each.record.run for each in evaluations]
    for each in _newest(run, root):
        if each.record.run not in told and not each.record.parents:
            yield from _evaluation(each, baselines=True)
    if not evaluations:
        yield "baselines and invalid answers: no evaluation of this run was found beside it"


def _training(run: Run) -> Iterator[str]:
    results = run.record.results or {}
    if "best_loss" not in results:
        return
    name = run.record.run
    best = f"lowest evaluation loss {results['best_loss']:.4f}"
    if "best_step" in results:
        best += f" (`best` is of step {results['best_step']:,})"
    yield f"{name}: {best}; {results.get('steps', 0):,} steps, ended by: {results.get('stopped', 'unknown')}"
    if results.get("peak_step", -1) >= 0:
        peak, final = results["peak_accuracy"], results["final_accuracy"]
        yield (
            f"{name}: first token right: peak {peak:.3f} at step {results['peak_step']:,}, final {final:.3f}, "
            f"degradation {peak - final:.3f}"
        )
    if text := results.get("text"):
        told = ", ".join(f"{key} {value:.3f}" for key, value in text.items())
        yield f"{name}: baseline, the untrained model reading the text: {told}"


def _newest(run: Run, root: Path) -> list[Run]:
    """The finished evaluations of a run's study, the newest of each stage."""
    every = runs(root, run.record.study)
    newest = {each.record.stage: each for each in every if OUTCOMES in each.record.artifacts}
    return list(newest.values())


def _evaluations_of(run: Run, root: Path) -> list[Run]:
    """Those that start from a training or read over its wire."""
    return [
        each
        for each in _newest(run, root)
        if any(parent.run == run.record.run for parent in each.record.parents.values())
    ]


def _is_baseline(run: Run, arm: str) -> bool:
    """Whether an arm is the untrained model reading the text, or any model reading the question alone."""
    configuration = run.record.configuration
    wire = str(configuration.get("arms", {}).get(arm, arm))
    return wire.partition(",")[0] == "none" or (wire == "text" and not configuration.get("start_from"))


def _evaluation(run: Run, *, baselines: bool = False) -> Iterator[str]:
    """A line for each arm, or for its baselines alone, and one for the floors."""
    outcomes = by_arm(read_outcomes(run.folder / OUTCOMES))
    for arm, tasks in run.metrics().items():
        label = " (baseline)" if _is_baseline(run, arm) else ""
        if baselines and not label:
            continue
        shown = [
            f"{task} {metric} {in_words(numbers[metric])} (n={numbers[metric]['n']:,})"
            for task, numbers in tasks.items()
            if "/" not in task and (metric := next(iter(numbers), None)) is not None
        ]
        yield f"{run.record.run}, arm `{arm}`{label}: {'; '.join(shown)}{_invalid(outcomes.get(arm, []))}"
    if not baselines and (floors := (run.record.results or {}).get("floors")):
        told = [f"{task} {name} {value:.3f}" for task, named in floors.items() for name, value in named.items()]
        yield f"{run.record.run}, floors: {', '.join(told) or 'none known'}"


def _invalid(outcomes: Sequence[Outcome]) -> str:
    """The share of answers in words that could not be read, over all tasks of an arm."""
    worded = [outcome for outcome in outcomes if "acc" not in outcome.metrics]
    if not worded:
        return "; answers are choices, none can be invalid"
    number = invalid([_with_error(outcome) for outcome in worded])
    return f"; invalid answers {in_words(number)}"  # type: ignore[arg-type]


def _with_error(outcome: Outcome) -> Outcome:
    """An outcome of a solution says that it is unreadable by a metric, one of a span by its error."""
    from dataclasses import replace

    return replace(outcome, error="unreadable") if outcome.metrics.get("unreadable") else outcome


def _noted(run: Run) -> Iterator[str]:
    record, results = run.record, run.record.results or {}
    notes = []
    if record.error:
        notes.append(f"error: {record.error.splitlines()[0]}")
    if record.status not in ("done",):
        notes.append(f"status: {run.status}")
    if len(record.times) > 1:
        notes.append(f"{len(record.times)} attempts: it was interrupted or failed before")
    notes += [
        f"gate not held: {gate.get('gate', gate)}" for gate in results.get("accept", ()) if not gate.get("held")
    ]
    if leaks := results.get("leaks"):
        notes.append(f"leaking arms: {', '.join(leaks)}")
    skipped: Mapping[str, Any] = results.get("skipped") or {}
    notes += [f"left out of {name}: {_short(count)}" for name, count in skipped.items() if count]
    unstable = {task: count for task, count in (results.get("unstable") or {}).items() if count}
    if unstable:
        notes.append(f"prompts whose last token changes with the answer: {_short(unstable)}")
    yield from notes or ["nothing"]


def _artifacts(run: Run, cite: Sequence[str]) -> Iterator[str]:
    """The files to cite with their hashes; a folder of several samples or of a checkpoint is one line."""
    record = run.record
    for name in cite:
        yield f"`{name}` {_hash(record.artifacts.get(name))}".rstrip()
    if record.log is not None or (run.folder / LOG).is_file():
        yield f"log: `{LOG}` {_hash(record.log.sha256 if record.log else None)}".rstrip()
    folders: dict[str, list[str]] = {}
    for path, sha256 in record.artifacts.items():
        above = path.rpartition("/")[0]
        if above:
            folders.setdefault(above, []).append(path)
        elif path not in cite:
            yield f"`{path}` {_hash(sha256)}"
    for above, files in folders.items():
        names = ", ".join(file.rpartition("/")[2] for file in files[:3])
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        yield f"`{above}/`: {names}{more}"


def _hash(sha256: str | None) -> str:
    return f"(SHA-256 {sha256[:16]}...)" if sha256 else ""


def _lineage(run: Run, parents: Sequence[Run]) -> Iterator[str]:
    yield f"identity {run.record.identity[:16]}..., {'ended' if run.record.status in ENDED else run.record.status}"
    for each in parents:
        yield f"starts from `{each.record.run}`, preserved too"
    for name, source in run.record.inputs.items():
        yield f"read {name}: `{source.path}` (SHA-256 {source.sha256[:16]}...)"

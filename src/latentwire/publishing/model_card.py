"""The model card: what it is, what was measured and how, and the commands that do it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from latentwire.publishing.card_numbers import CardRow, Evaluations
from latentwire.publishing.published_files import STUDY, anonymous
from latentwire.runs.store import Input, Run
from latentwire.version import __version__
from latentwire.wires.latent.latent_config import LatentConfig, read_config

_NAMES = {"exact_match": "exact match", "f1": "F1", "acc": "accuracy", "acc_norm": "normalized accuracy"}
_CONTROLS = (
    "On the same examples. `deranged` is another context's message, `mean` an average of many, `zero` nothing but "
    "zeros; under `counterfactual` the answer is exchanged in the context, and right is the exchanged one."
)
_FILES = (
    "`run.json` is the run's manifest: configuration, versions, seeds, hashes of its inputs and of everything it "
    "left. `evaluations/` has every metric of every arm. Places of the machine it ran on were cut."
)


def card(run: Run, folder: Path, repo: str, evaluations: Evaluations, call: Mapping[str, str]) -> ModelCard:
    """The card of what lies in a folder that is about to be published.

    Args:
        run: The run that trained it.
        folder: What `published_files.gather` wrote.
        repo: Where it goes.
        evaluations: What was measured.
        call: For a local model, the hub id by which others have it.
    """
    wire = read_config(folder) if (folder / "wire.json").is_file() else None
    model = str(anonymous(str(run.record.configuration["model"]), call))
    base = sorted({wire.source, *wire.adapters}) if wire else [model]
    title = repo.partition("/")[2]
    rows = evaluations.rows(run.record.stage)
    settings = evaluations.settings()
    data = ModelCardData(
        library_name="latentwire" if wire else "transformers",
        pipeline_tag=None if wire else "text-generation",
        tags=["latentwire", "latent-wire" if wire else "prefix-lm"],
        base_model=[name for name in base if "/" in name] or None,
        model_name=title,
        eval_results=[_result(row, settings) for row in rows if row.own and row.metric != "primary"],
    )
    reader = next(iter(wire.adapters)) if wire else repo
    task = next(iter(settings.get("tasks") or ()), "one_hop")
    use = f"latentwire eval --model {reader} --task {task}" + (f" --wire {repo} --controls" if wire else "")
    parts = [
        f"# {title}",
        _wire(wire) if wire else _model(run, model),
        f"## Use\n\n{_code([use])}",
        "## Training",
        _training(run.record.results or {}),
        "## Measured",
        *_measured(rows, evaluations),
        "## Do it again",
        _code(_commands(run, repo, reader if wire else None, evaluations)),
        _read(run, evaluations),
        "## Files",
        _FILES,
    ]
    body = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=True)


def _result(row: CardRow, settings: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="multiple-choice" if row.metric.startswith("acc") else "question-answering",
        dataset_type=row.task.replace("/", "-"),
        dataset_name=row.task,
        dataset_split=settings.get("split"),
        dataset_args={"arm": row.arm, "stage": row.stage, "n": row.n},
        metric_type=row.metric,
        metric_name=f"{_NAMES[row.metric]}, {row.stage}/{row.arm}",
        metric_value=round(row.value, 6),
        metric_args={"low": row.low, "high": row.high, "confidence": 0.95},
    )


def _model(run: Run, model: str) -> str:
    configuration, results = run.record.configuration, run.record.results or {}
    trained = "low-rank adapters, merged into the weights" if configuration.get("lora") else "all weights"
    return (
        f"{model}, finetuned over the wire `{configuration['wire']}` with LatentWire {__version__} ({trained}, "
        f"{results.get('steps', '?')} steps). `prompt_format.json` is the prompt format it was trained with."
    )


def _wire(wire: LatentConfig) -> str:
    readers = ", ".join(f"`{reader}` ({adapter.kind})" for reader, adapter in wire.adapters.items())
    kind = "A latent wire" if set(wire.adapters) == {wire.source} else "A bridge"
    carried = "without the question" if wire.carry == "context" else "together with the question"
    return (
        f"{kind} of LatentWire {__version__}: `{wire.source}` reads a context {carried}, and {readers} reads the "
        "latents that it makes. It holds no model's weights: the readers stay as they are. `wire.json` has the "
        "prompt formats that it was trained with."
    )


def _measured(rows: Sequence[CardRow], evaluations: Evaluations) -> list[str]:
    if not rows:
        return ["Nothing has been evaluated yet."]
    settings = evaluations.settings()
    limit = f", the first {settings['limit']} examples of each task" if settings.get("limit") else ""
    how = f"Split `{settings.get('split')}`{limit}; 95 % intervals, examples of one passage counted together."
    parts = [how, _table([row for row in rows if row.own])]
    if others := [row for row in rows if not row.own]:
        parts += ["### Controls and comparisons", _CONTROLS, _table(others)]
    if floors := evaluations.floors():
        lines = [f"| {task} | {name} | {value:.3f} |" for task, of in floors.items() for name, value in of.items()]
        parts += ["### Floors", "What is earned without reading.", _lines("task|floor|value", lines)]
    results = [each.record.results or {} for each in evaluations.reading.values()]
    if leaks := sorted({name for each in results for name in each.get("leaks", ())}):
        parts.append(f"**Arms in which a scored token sees its own label**: {', '.join(leaks)}.")
    return parts


def _training(results: Mapping[str, Any]) -> str:
    if not results:
        return "The run has no results."
    told = (
        f"{results['steps']:,} steps, {results['tokens']:,} tokens, {results['seconds']:,.0f} s of training; "
        f"ended by: {results['stopped']}. Best evaluation loss {results['best_loss']:.4f} nats a token, at step "
        f"{results['best_step']:,}."
    )
    gates = [
        f"| {gate['gate']} | {gate['reader']} | {gate['value']:.3f} | {gate['n']} | "
        f"{'held' if gate['held'] else 'did not hold'} |"
        for gate in results.get("accept", ())
    ]
    return told + (f"\n\n{_lines('gate|reader|value|n|', gates)}" if gates else "")


def _table(rows: Iterable[CardRow]) -> str:
    lines = [
        f"| {row.stage}/{row.arm} | `{row.wire}` | {row.task} | {row.metric} | {row.interval} | {row.n:,} |"
        for row in rows
    ]
    return _lines("arm|wire|task|metric|value|n", lines)


def _lines(columns: str, lines: Sequence[str]) -> str:
    names = columns.split("|")
    return "\n".join([f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}", *lines])


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```"])


def _commands(run: Run, repo: str, reader: str | None, evaluations: Evaluations) -> list[str]:
    """What evaluates it again, where tasks have names, and what trains it again. reader: of a wire."""
    settings = evaluations.settings()
    commands = [f"latentwire run {STUDY} --stage {run.record.stage}", f"latentwire run {STUDY}"]
    if not settings or _task_files(evaluations) or settings.get("split") not in (None, "test"):
        return commands
    words = ["latentwire eval", f"--model {reader or repo}", *(f"--task {task}" for task in settings["tasks"])]
    words += [f"--limit {settings['limit']}"] if settings.get("limit") else []
    own = [repo] if reader else sorted({row.wire for row in evaluations.rows(run.record.stage) if row.own})
    words += [f"--wire {wire}" for wire in own] + (["--controls"] if reader else [])
    return [" ".join(words), *commands]


def _read(run: Run, evaluations: Evaluations) -> str:
    """The files that are needed for it."""
    files = [given for name, given in run.record.inputs.items() if "data" in name] + _task_files(evaluations)
    told = dict.fromkeys(f"`{Path(each.path).name}` ({each.sha256[:12]}…)" for each in files)
    if not told:
        return ""
    return (
        f"Files that it read, with their SHA-256: {', '.join(told)}. Put them beside `{STUDY}`; a task that is a "
        "file is written `{name: NAME, kind: KIND, data: FILE}` there."
    )


def _task_files(evaluations: Evaluations) -> list[Input]:
    inputs = [each.record.inputs for each in evaluations.reading.values()]
    return [given for of in inputs for name, given in of.items() if name.startswith("task ")]

"""Outcomes from the sample logs of lm-eval (`--log_samples`), so that they can be compared with those of a run.

A log is `samples_TASK_TIME.jsonl`, one line for each document and filter, with `doc_id`, `doc`, `arguments` and
every metric under its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentwire.errors import UserError, one_of
from latentwire.evaluation.metrics import METRICS
from latentwire.evaluation.outcomes import Outcome
from latentwire.tasks.data_files import digest

ARM = "lm-eval"
"""The arm's name where a log has no filter worth naming."""
_FILE = re.compile(r"samples_(.+?)_\d{4}-\d\d-\d\dT[\d\-:.]+\.jsonl")
_OURS = re.compile(r"([0-9a-f]{16})-(\d+)")
"""The id of an example of an lm-eval task: a digest of its content, and its place among the documents."""


@dataclass(frozen=True)
class Sample:
    """One document's line.

    Attributes:
        place: `doc_id`, its place among the documents.
        own_id: the document's own `id`, if it has one.
        digests: what the content's digest would be in the id of our example of it.
        doc_hash: lm-eval's hash of the document.
        said: the answer after the filter, as text.
        metrics: by name.
    """

    place: int
    own_id: str | None
    digests: tuple[str, ...]
    doc_hash: str
    said: str
    metrics: dict[str, float]


def is_log(path: Path) -> bool:
    """Whether a path is a sample log of lm-eval, or a folder that holds some."""
    if path.is_dir():
        return any(path.rglob("samples_*.jsonl"))
    return path.suffix == ".jsonl" and path.is_file()


def read_logs(path: Path, wanted: str | None = None) -> dict[str, list[Sample]]:
    """The samples of a log, or of the newest log of each task in a folder, by task.

    Args:
        path: a `.jsonl` file or a folder.
        wanted: which filter to read, where a log has several; the first if not given.

    Raises:
        UserError: a line is not one of such a log, or there is no such filter.
    """
    files = [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"), key=lambda file: file.name)
    return {_task_of(file): _read(file, wanted) for file in files}  # a later log of a task replaces an earlier one


def outcomes(samples: Mapping[str, Sequence[Sample]], like: Mapping[str, Sequence[Outcome]]) -> list[Outcome]:
    """Samples as outcomes with the ids and groups of a run's examples.

    A document is the example of the same place or id. Where the run's ids say what the example's content is (those
    of lm-eval's tasks do), some of which differ, the log is of other examples.

    Args:
        samples: by task.
        like: the run's outcomes by task, of one arm.

    Raises:
        UserError: tasks, documents or their contents differ.
    """
    paired: list[Outcome] = []
    for task, theirs in like.items():
        name = _same_task(task, samples, like)
        if name is not None:
            paired += _paired(task, samples[name], theirs)
    if not paired:
        raise UserError(f"lm-eval: found samples of {', '.join(samples)}, expected those of {', '.join(like)}.")
    return paired


def alone(samples: Mapping[str, Sequence[Sample]]) -> list[Outcome]:
    """Samples as outcomes under lm-eval's own ids, each document a group of its own: to compare two logs."""
    return [
        Outcome(
            task=task,
            arm=ARM,
            id=f"{each.doc_hash[:16]}-{each.place}",
            group=f"{each.doc_hash[:16]}-{each.place}",
            prediction=each.said,
            metrics=each.metrics,
        )
        for task, documents in samples.items()
        for each in documents
    ]


def _same_task(task: str, samples: Mapping[str, Any], like: Mapping[str, Any]) -> str | None:
    if task in samples:
        return task
    return next(iter(samples)) if len(samples) == len(like) == 1 else None


def _paired(task: str, samples: Sequence[Sample], theirs: Sequence[Outcome]) -> list[Outcome]:
    by_id = {each.own_id: each for each in samples if each.own_id is not None}
    by_place = {each.place: each for each in samples}
    pairs: list[tuple[Outcome, Sample | None]] = []
    known = [_OURS.fullmatch(outcome.id) for outcome in theirs]
    for outcome, ours in zip(theirs, known, strict=True):
        pairs.append((outcome, by_place.get(int(ours[2])) if ours else by_id.get(outcome.id)))
    lacking = [outcome.id for outcome, sample in pairs if sample is None]
    surplus = len(samples) - (len(pairs) - len(lacking))
    if lacking or surplus:
        example = f" ({lacking[0]} among them)" if lacking else ""
        raise UserError(
            f"compare: {task}: {len(lacking)} of the run's {len(theirs)} examples{example} are not in the lm-eval "
            f"log, and {surplus} of the log's {len(samples)} documents not in the run; expected the same examples."
        )
    if all(known):
        same = [
            m is not None and s is not None and m[1] in s.digests for m, (_, s) in zip(known, pairs, strict=True)
        ]
        # None at all: another chat template or number of shots words every prompt otherwise.
        if any(same) and not all(same):
            odd = pairs[same.index(False)][0].id
            raise UserError(
                f"compare: {task}: {same.count(False)} documents of the lm-eval log have another content than the "
                f"run's examples, {odd} among them; expected the same examples."
            )
    return [
        replace(outcome, arm=ARM, prediction=sample.said, metrics=_shared(outcome, sample, task), error=None)
        for outcome, sample in pairs
        if sample is not None
    ]


def _shared(outcome: Outcome, sample: Sample, task: str) -> dict[str, float]:
    """The metrics that both have, in the run's order."""
    metrics = {name: sample.metrics[name] for name in outcome.metrics if name in sample.metrics}
    if not metrics:
        raise UserError(
            f"compare: {task}: found {', '.join(sample.metrics)} in the lm-eval log and "
            f"{', '.join(outcome.metrics)} in the run, expected a metric that both have."
        )
    return metrics


def _read(path: Path, wanted: str | None) -> list[Sample]:
    lines = path.read_text(encoding="utf-8").split("\n")
    by_filter: dict[str, list[Sample]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            by_filter.setdefault(str(values.get("filter", "none")), []).append(_sample(values))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number}: found no sample ({type(error).__name__}: {error}), expected a log that "
                "lm-eval wrote with --log_samples."
            ) from error
    if not by_filter:
        raise UserError(f"{path}: found no samples, expected a log that lm-eval wrote with --log_samples.")
    if wanted is not None and wanted not in by_filter:
        raise UserError(f"{path}: found no filter {wanted!r}, expected {one_of(wanted, by_filter)}.")
    return by_filter[wanted] if wanted is not None else next(iter(by_filter.values()))


def _sample(values: Mapping[str, Any]) -> Sample:
    known = {name for names in METRICS.values() for name in names}
    named = values.get("metrics") or known
    metrics = {name: float(values[name]) for name in named if isinstance(values.get(name), int | float)}
    if not metrics:
        raise KeyError("no metric")
    said = values.get("filtered_resps", "")
    doc = values.get("doc") or {}
    own = doc.get("id") if isinstance(doc, dict) else None
    return Sample(
        place=int(values["doc_id"]),
        own_id=None if own is None else str(own),
        digests=_digests(values.get("arguments"), values.get("target")),
        doc_hash=str(values.get("doc_hash", "")),
        said=said if isinstance(said, str) else json.dumps(said, ensure_ascii=False),
        metrics=metrics,
    )


def _digests(arguments: Any, target: Any) -> tuple[str, ...]:
    """The digests that `tasks.harness` may have given this document, from what lm-eval asked."""
    requests = (
        [list(each.values()) for each in arguments.values()] if isinstance(arguments, dict) else arguments or []
    )
    if not requests or not all(isinstance(each, list | tuple) and len(each) > 1 for each in requests):
        return ()
    context, choices = str(requests[0][0]), [str(each[1]) for each in requests]
    bare = [choice.removeprefix(" ") for choice in choices]
    targets = [str(each) for each in target] if isinstance(target, list) else [str(target)]
    return digest(context, *bare), digest(context, *choices), digest(context, *targets)


def _task_of(path: Path) -> str:
    found = _FILE.fullmatch(path.name)
    return found[1] if found else path.stem.removeprefix("samples_")

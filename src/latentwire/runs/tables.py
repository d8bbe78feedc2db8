"""Runs as a person reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from rich.table import Table

from latentwire.printing import plain_table
from latentwire.runs.log import duration
from latentwire.runs.store import Run


def listed(found: Iterable[Run]) -> Table:
    """One row a run."""
    table = plain_table("run", "kind", "status", "took", "what", overflow="fold")
    for run in found:
        took = "" if run.seconds is None else duration(run.seconds)
        table.add_row(run.record.run, run.record.kind, run.status, took, _what(run))
    return table


def shown(run: Run) -> Iterator[str | Table]:
    """A run in full: lines and tables."""
    record = run.record
    took = "" if run.seconds is None else f", {duration(run.seconds)}"
    goes = f" in {len(record.times)} goes" if len(record.times) > 1 else ""
    yield f"{record.run}: {record.kind}, {run.status}{took}{goes}"
    if record.error:
        yield f"error: {record.error}"
    yield f"folder: {run.folder}"
    yield f"identity: {record.identity}"
    for name, parent in record.parents.items():
        yield f"starts from: {name}, {parent.run}"
    for name, read in record.inputs.items():
        yield f"{name}: {read.path} (SHA-256 {read.sha256[:16]}...)"
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in record.versions.items())
    if record.git:
        yield f"commit: {record.git['commit']}{' with changes' if record.git['changed'] else ''}"
    yield "configuration: " + json.dumps(record.configuration, ensure_ascii=False)
    if record.results:
        yield "results: " + json.dumps(record.results, ensure_ascii=False)
    path = run.folder / "metrics.json"
    if path.exists():
        yield _metrics(json.loads(path.read_text(encoding="utf-8")))


def _what(run: Run) -> str:
    """An error, or what the run read with or trained on."""
    if run.record.error:
        return run.record.error.splitlines()[0]
    arms = run.record.configuration.get("arms")
    if isinstance(arms, dict):
        return "; ".join(f"{arm}: {wire}" for arm, wire in arms.items())
    results = run.record.results or {}
    steps = f", {results['steps']} steps, {results['stopped']}" if "steps" in results else ""
    return f"{run.record.configuration.get('wire', '')}{steps}"


def _metrics(metrics: dict[str, dict[str, dict[str, dict[str, float]]]]) -> Table:
    table = plain_table("arm", "task", "metric", "value [95 %]", right=("n",))
    for arm, tasks in metrics.items():
        for task, numbers in tasks.items():
            for metric, number in numbers.items():
                interval = f"{number['value']:.3f} [{number['low']:.3f}, {number['high']:.3f}]"
                table.add_row(arm, task, metric, interval, str(number["n"]))
    return table

"""Runs as tables and lines for the screen."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.table import Table

from latentwire.printing import plain_table
from latentwire.runs.log import duration
from latentwire.runs.queries import Hit, began
from latentwire.runs.store import METRICS, Run, Unreadable


def listed(hits: Iterable[Hit], unreadable: Iterable[Unreadable] = ()) -> Iterator[str]:
    """Aligned lines, one for each run; those that cannot be read come last, with the reason.

    Lines of text rather than a table: measuring the cells of thousands of rows would take seconds.
    """
    rows = [("run", "kind", "status", "began", "took", "what")]
    for hit in hits:
        run = hit.run
        took = "" if run.seconds is None else duration(run.seconds)
        at = f"{began(run):%Y-%m-%d %H:%M}"
        rows.append((run.record.run, run.record.kind, run.status, at, took, "; ".join(hit.met) or _what(run)))
    for broken in unreadable:
        rows.append(("/".join(broken.folder.parts[-3:]), "", "unreadable", "", "", broken.problem))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def shown(run: Run) -> Iterator[str | Table]:
    """A run in full: lines and tables.

    Raises:
        UserError: Its metrics are not those that the run wrote.
    """
    run.check_results()
    record = run.record
    took = "" if run.seconds is None else f", {duration(run.seconds)}"
    attempts = f" in {len(record.times)} attempts" if len(record.times) > 1 else ""
    yield f"{record.run}: {record.kind}, {run.status}{took}{attempts}"
    if record.error:
        yield f"error: {record.error}"
    yield f"folder: {run.folder}"
    yield f"identity: {record.identity}"
    for name, parent in record.parents.items():
        yield f"starts from: {name}, {parent.run}"
    for name, source in record.inputs.items():
        yield f"{name}: {source.path} (SHA-256 {source.sha256[:16]}...)"
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in record.versions.items())
    if record.command:
        yield f"command: {shlex.join(record.command)}"
    if record.git:
        yield f"commit: {record.git['commit']}{' with changes' if record.git['changed'] else ''}"
    yield "configuration: " + json.dumps(record.configuration, ensure_ascii=False)
    if record.results:
        yield "results: " + json.dumps(record.results, ensure_ascii=False)
    path = run.folder / METRICS
    if path.exists():
        yield _metrics(json.loads(path.read_text(encoding="utf-8")))


def _what(run: Run) -> str:
    """The run's error, or its arms, or the wire that it trained."""
    if run.record.error:
        return run.record.error.splitlines()[0]
    arms = run.record.configuration.get("arms")
    if isinstance(arms, dict):
        return "; ".join(f"{arm}: {wire}" for arm, wire in arms.items())
    results = run.record.results or {}
    steps = f", {results['steps']} steps, {results['stopped']}" if "steps" in results else ""
    return f"{_wire(run.record.configuration.get('wire', ''))}{steps}"


def _wire(wire: Any) -> str:
    """A text wire as it is written; of a wire of latents its encoder, what it keeps, and who reads it."""
    if not isinstance(wire, dict):
        return str(wire)
    encoder = wire.get("encoder") or {}
    select = encoder.get("select") or {}
    kept = (
        f"{select['ratio']}:1" if select.get("ratio") else str(select.get("slots") or encoder.get("tokens") or "")
    )
    words = [encoder.get("kind"), select.get("kind"), kept, (encoder.get("translator") or {}).get("kind")]
    readers = ", ".join(name.rsplit("/", 1)[-1] for name in wire.get("adapters") or {})
    return f"{' '.join(word for word in words if word)} for {readers}"


def _metrics(metrics: dict[str, dict[str, dict[str, dict[str, float | None]]]]) -> Table:
    table = plain_table("arm", "task", "metric", "value [95 %]", right=("n",))
    for arm, tasks in metrics.items():
        for task, numbers in tasks.items():
            for metric, number in numbers.items():
                table.add_row(arm, task, metric, in_words(number), str(number["n"]))
    return table


def in_words(number: Mapping[str, float | None], digits: int = 3) -> str:
    """A metric with its interval: `0.846 [0.833, 0.858]`; an end without bound is left open."""
    low, high = (f"{end:.{digits}f}" if (end := number[key]) is not None else "" for key in ("low", "high"))
    return f"{number['value']:.{digits}f} [{low}, {high}]"

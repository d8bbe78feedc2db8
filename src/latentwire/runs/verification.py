"""Whether runs are still what they were when they ended: every byte, every file, every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentwire.errors import UserError
from latentwire.runs import seals
from latentwire.runs.store import ENDED, LOCK, LOG, METRICS, OUTCOMES, RECORD, Run, Unreadable

DIAGNOSTICS, CHECKPOINTS = "diagnostics.jsonl", "checkpoints"
_READERS = 8  # threads that hash files: they wait for the disk, or hash without the interpreter's lock


@dataclass(frozen=True)
class RunFault:
    """Something that is not as it should be.

    Attributes:
        run: the run, as `run.json` names it, or its folder.
        where: the file or part.
        problem: what was found and what was expected.
        kind: `changed` (a byte, or a file that is gone), `incomplete`, `checkpoint` (does not load, or gives other
            logits), `empty` (of a preserved run's manifest), or `unknown` (cannot be checked; no failure).
    """

    run: str
    where: str
    problem: str
    kind: Literal["changed", "incomplete", "checkpoint", "empty", "unknown"]

    def __str__(self) -> str:
        return f"{self.run}: {self.where}: {self.problem}"

    @property
    def fails(self) -> bool:
        """Whether it is a failure, and not only something that could not be checked."""
        return self.kind != "unknown"


def verify_run(run: Run, root: Path | None = None) -> list[RunFault]:
    """Check one run's record, files and completeness; checkpoints are loaded by `runs.checkpoint_checks`.

    Args:
        run: the run.
        root: the folder of all runs, where its parents are looked up; None leaves them out.

    Example:
        >>> verify_run(find(Path("runs"), "quickstart/baseline"), Path("runs"))
        []
    """
    return [*_record(run), *_files(run), *_completeness(run), *(_parents(run, root) if root is not None else ())]


def verify_all(
    runs: Sequence[Run],
    unreadable: Iterable[Unreadable] = (),
    root: Path | None = None,
    progress: Callable[[int], None] = lambda more: None,
) -> Iterator[RunFault]:
    """Check many runs; the findings of each, in the order given, those that cannot be read first.

    Args:
        runs: which runs.
        unreadable: runs whose record cannot be read; each is a finding.
        root: as for `verify_run`.
        progress: called with 1 after each run.
    """
    for broken in unreadable:
        yield RunFault("/".join(broken.folder.parts[-3:]), RECORD, broken.problem.rstrip("."), "changed")
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(lambda run: verify_run(run, root), runs):
            progress(1)
            yield from found


def _record(run: Run) -> Iterator[RunFault]:
    name = run.record.run
    try:
        whole = seals.is_whole((run.folder / RECORD).read_bytes())
    except OSError as error:
        yield RunFault(name, RECORD, f"cannot be read ({error.strerror})", "changed")
        return
    if whole is False:
        yield RunFault(
            name, RECORD, "is not as it was written, expected the content that its last line hashes", "changed"
        )
    if whole is None:
        yield RunFault(name, RECORD, "has no hash of its own: an older version wrote it", "unknown")


def _files(run: Run) -> Iterator[RunFault]:
    record = run.record
    for path in run.changed_artifacts(""):
        there = (run.folder / path).is_file()
        problem = "has changed since the run ended" if there else "is gone"
        yield RunFault(
            record.run, path, f"{problem}, expected the content that {RECORD} has the hash of", "changed"
        )
    if record.log is not None and not _log_is_whole(run):
        yield RunFault(record.run, LOG, "is not as it was when the run ended", "changed")
    if record.status in ENDED:
        for path in _strange(run):
            yield RunFault(
                record.run, path, f"was added after the run ended: {RECORD} has no hash of it", "changed"
            )


def _log_is_whole(run: Run) -> bool:
    """Whether the log begins with what it held when the run ended; later lines do not count."""
    import hashlib

    assert run.record.log is not None
    try:
        with (run.folder / LOG).open("rb") as file:
            log = file.read(run.record.log.bytes)
    except OSError:
        return False
    return len(log) == run.record.log.bytes and hashlib.sha256(log).hexdigest() == run.record.log.sha256


def _strange(run: Run) -> list[str]:
    """Files that no hash covers; drawings beside the results and what a system leaves are no results."""
    known = {RECORD, LOG, LOCK, *run.record.artifacts}
    files = (path for path in run.folder.rglob("*") if path.is_file())
    names = [path.relative_to(run.folder) for path in files]
    return sorted(
        name.as_posix()
        for name in names
        if name.as_posix() not in known and not any(part.startswith(".") or part == "last" for part in name.parts)
    )


def _completeness(run: Run) -> Iterator[RunFault]:
    record = run.record
    if record.status not in ENDED:
        return
    wanted = [METRICS, OUTCOMES] if record.kind == "evaluate" else [DIAGNOSTICS]
    for name in wanted:
        if name not in record.artifacts:
            yield RunFault(record.run, name, f"is missing, expected it of a {record.kind} run", "incomplete")
    if record.results is None:
        yield RunFault(
            record.run, RECORD, f"has no results, expected some of a run that is {record.status}", "incomplete"
        )
        return
    if record.kind == "evaluate" and METRICS in record.artifacts:
        yield from _arms(run)
    if record.kind != "evaluate":
        yield from _training(run)


def _arms(run: Run) -> Iterator[RunFault]:
    """Arms that were asked for and have no metrics."""
    try:
        scored = run.metrics()
    except (OSError, ValueError):
        return  # a changed file, which is a finding already
    asked = run.record.configuration.get("arms") or ()
    for arm in asked:
        if arm not in scored:
            yield RunFault(
                run.record.run, METRICS, f"has no arm {arm}, expected every arm that was asked for", "incomplete"
            )


def _training(run: Run) -> Iterator[RunFault]:
    record = run.record
    names = {
        path.split("/")[1]
        for path in record.artifacts
        if path.startswith(f"{CHECKPOINTS}/") and path.count("/") > 1
    }
    for name in ("best", "final"):
        if name not in names:
            yield RunFault(
                record.run, f"{CHECKPOINTS}/{name}", "is missing, expected it of a finished training", "incomplete"
            )
    steps, last = (record.results or {}).get("steps"), _last_step(run.folder / DIAGNOSTICS)
    if steps is not None and last is not None and last < int(steps):
        found = f"ends at step {last}, expected {steps}, the steps that were trained"
        yield RunFault(record.run, DIAGNOSTICS, found, "incomplete")


def _last_step(path: Path) -> int | None:
    """The highest step in a diagnostics file; None where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        steps = [int(json.loads(line)["step"]) for line in lines[-2:]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return max(steps, default=None)


def _parents(run: Run, root: Path) -> Iterator[RunFault]:
    for name, parent in run.record.parents.items():
        try:
            identity: Any = Run.read(root / parent.run).record.identity
        except UserError:
            identity = None
        if identity is None:
            problem = f"its parent {parent.run} is not in {root}: the run cannot be reproduced from here"
            yield RunFault(run.record.run, f"parent {name}", problem, "unknown")
        elif identity != parent.identity:
            problem = f"its parent {parent.run} is another run than it started from"
            yield RunFault(run.record.run, f"parent {name}", problem, "changed")

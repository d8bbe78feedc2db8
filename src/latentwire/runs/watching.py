"""How far a run is, how fast, and whether something is wrong: read from its files alone.

A folder that is synced from another machine has no locks to trust and no process to ask. What counts is what
`run.json`, `diagnostics.jsonl` and `log.txt` say, and when anything was last written.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.runs.log import duration
from latentwire.runs.queries import began
from latentwire.runs.store import ENDED, LOG, RECORD, Run, find, scan

STALLED_AFTER = 600.0
"""Seconds without anything written after which a run that says `running` is stalled."""
_TAIL = 2**16  # bytes of a log that are read
_LINES = 20  # logged steps that the speed is measured over
_TRACEBACK = "Traceback (most recent call last):"
_PROGRESS = re.compile(
    r"(?P<what>.*): (?P<done>[\d,]+) of (?P<total>[\d,]+) (?P<unit>\w+), (?P<rate>[\d.]+) a second, "
)
_GOES_ON = re.compile(r"(resuming|starting) \S|step \d+ of \d+|resumed at step")


@dataclass(frozen=True)
class RunProgress:
    """A run at one moment; None for what its files do not say.

    Attributes:
        run: as `run.json` names it.
        kind, status: as `run.json` says; `running` may be long untrue.
        done, total, unit: steps of a training, or answers of an evaluation.
        rate: units a second, lately.
        seconds_left: until the last unit, at that rate.
        tokens_rate: tokens a second, lately.
        loss, learning_rate, first_token_accuracy, memory_gib: of the last logged step.
        objectives: the objectives' values in that step.
        eval_step, eval_loss, eval_first_token_accuracy: of the last evaluation.
        best_eval_loss: the lowest so far.
        quiet: seconds since anything was written.
        alarm: what is wrong, or None.
    """

    run: str
    kind: str
    status: str
    done: int | None = None
    total: int | None = None
    unit: str = "steps"
    rate: float | None = None
    seconds_left: float | None = None
    tokens_rate: float | None = None
    loss: float | None = None
    objectives: Mapping[str, float] | None = None
    learning_rate: float | None = None
    first_token_accuracy: float | None = None
    memory_gib: float | None = None
    eval_step: int | None = None
    eval_loss: float | None = None
    eval_first_token_accuracy: float | None = None
    best_eval_loss: float | None = None
    quiet: float = 0.0
    alarm: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ENDED or self.status in ("failed", "interrupted")

    def to_json(self) -> str:
        """One line of JSON; a number that is not finite becomes its name."""
        values = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        return json.dumps(values, ensure_ascii=False)


def look(run: Run, *, stalled_after: float = STALLED_AFTER, now: float | None = None) -> RunProgress:
    """How far a run is, and what is wrong with it.

    Args:
        run: as it was read just now.
        stalled_after: seconds without anything written after which it is stalled.
        now: seconds since 1970; the present if not given.

    Example:
        >>> look(find(Path("runs"), "latent-wire/fit")).alarm
    """
    record, folder = run.record, run.folder
    quiet = max(0.0, (time.time() if now is None else now) - _last_written(folder))
    log = _tail(folder / LOG)
    lines = list(_diagnostics(folder / "diagnostics.jsonl"))
    values = _training(lines, record.configuration.get("steps")) if lines else _evaluation(log)
    alarm = _alarm(record.status, record.error, log, lines, quiet, stalled_after)
    if record.status in ENDED:
        values["seconds_left"] = None
    return RunProgress(record.run, record.kind, record.status, quiet=quiet, alarm=alarm, **values)


def pick(root: Path, name: str) -> Run:
    """The run to watch: the one called so, or of a study's folder, or of a folder of studies, the one under way.

    Of several the newest that says `running` counts, else the newest.

    Raises:
        UserError: there is none, or it cannot be read at the moment.
    """
    for place in (Path(name), root / name):
        if place.is_dir() and not (place / RECORD).is_file():
            patterns = (
                (place.parent.parent, place.parent.name, place.name),
                (place.parent, place.name, "*"),
                (place, "*", "*"),
            )
            for above, study, stage in patterns:
                runs, _ = scan(above, study, stage)
                if runs:
                    under_way = [run for run in runs if run.record.status == "running"]
                    return max(under_way or runs, key=began)
    return find(root, name)


def watch(
    root: Path, name: str, *, every: float = 10.0, stalled_after: float = STALLED_AFTER
) -> Iterator[RunProgress]:
    """Look again and again, until the run has ended or something is wrong; a study's next stage is followed.

    Args:
        root: the folder of all runs.
        name: as for `pick`.
        every: seconds between looks.
        stalled_after: as for `look`.

    Yields:
        The state whenever it has changed, and the last one.

    Raises:
        UserError: there is no such run, or its record stays unreadable.
    """
    shown: RunProgress | None = None
    unreadable_since: float | None = None
    while True:
        try:
            progress = look(pick(root, name), stalled_after=stalled_after)
        except UserError:
            # A record that is being synced may be half there.
            unreadable_since = unreadable_since or time.monotonic()
            if shown is None or time.monotonic() - unreadable_since > stalled_after:
                raise
        else:
            unreadable_since = None
            last = progress.alarm is not None or progress.ended
            if (
                shown is None
                or last
                or (progress.run, progress.done, progress.status) != (shown.run, shown.done, shown.status)
            ):
                yield progress
                shown = progress
            if last:
                return
        time.sleep(every)


def sentences(progress: RunProgress) -> Iterator[str]:
    """A run's state as lines for the screen."""
    parts = [f"{progress.run}: {progress.status}"]
    if progress.done is not None:
        share = f" ({progress.done / progress.total:.0%})" if progress.total else ""
        of = f" of {progress.total:,}" if progress.total else ""
        parts.append(f"{progress.done:,}{of} {progress.unit}{share}")
    if progress.rate:
        parts.append(f"{progress.rate:.2f} {progress.unit} a second")
    if progress.tokens_rate:
        parts.append(f"{progress.tokens_rate:,.0f} tokens a second")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    if not progress.ended:
        parts.append(f"last written {duration(progress.quiet)} ago")
    yield ", ".join(parts)
    numbers = []
    if progress.loss is not None:
        terms = progress.objectives or {}
        several = (
            f" ({', '.join(f'{name} {value:.3f}' for name, value in terms.items())})" if len(terms) > 1 else ""
        )
        numbers.append(f"loss {progress.loss:.4f}{several}")
    if progress.first_token_accuracy is not None:
        numbers.append(f"first token right {progress.first_token_accuracy:.3f}")
    if progress.eval_loss is not None:
        numbers.append(f"evaluation at step {progress.eval_step:,}: loss {progress.eval_loss:.4f}")
        if progress.best_eval_loss is not None and progress.best_eval_loss < progress.eval_loss:
            numbers[-1] += f" (best {progress.best_eval_loss:.4f})"
        if progress.eval_first_token_accuracy is not None:
            numbers[-1] += f", first token right {progress.eval_first_token_accuracy:.3f}"
    if progress.memory_gib is not None:
        numbers.append(f"{progress.memory_gib:.1f} GiB")
    if numbers:
        yield "  " + "; ".join(numbers)
    if progress.alarm:
        yield f"  ALARM: {progress.alarm}"


def ends_in_traceback(log: str) -> str | None:
    """The error that a log ends in; None where the log goes on after its last traceback."""
    if _TRACEBACK not in log:
        return None
    lines = log.rpartition(_TRACEBACK)[2].splitlines()[1:]
    error = next((at for at, line in enumerate(lines) if line.strip() and not line[0].isspace()), None)
    if error is None:
        return "a traceback without its end"
    if any(_PROGRESS.match(line) or _GOES_ON.match(line) for line in lines[error + 1 :]):
        return None
    return lines[error].strip()


def _alarm(
    status: str,
    error: str | None,
    log: str,
    lines: Sequence[Mapping[str, Any]],
    quiet: float,
    stalled_after: float,
) -> str | None:
    if status == "failed":
        return f"failed: {(error or 'no reason given').splitlines()[0]}"
    if status == "rejected":
        return "rejected: a gate of the stage did not hold"
    if status == "interrupted":
        return "interrupted: it was stopped from outside"
    if status == "done":
        return None
    if (raised := ends_in_traceback(log)) is not None:
        return f"its log ends in a traceback: {raised}"
    losses = [line[key] for line in lines[-_LINES:] for key in ("loss", "eval_loss") if key in line]
    if any(isinstance(loss, float) and not math.isfinite(loss) for loss in losses):
        return "its loss is no finite number"
    if quiet > stalled_after:
        return f"stalled: nothing was written for {duration(quiet)}"
    return None


def _last_written(folder: Path) -> float:
    """When anything in a run's folder was last written, seconds since 1970."""
    times = []
    for path in (folder, *folder.rglob("*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue  # renamed or removed meanwhile
    return max(times, default=0.0)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _diagnostics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a diagnostics file, as far as they are whole."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for text in texts:
        try:
            line = json.loads(text)
            yield {**line, "step": int(line["step"])}
        except (ValueError, KeyError, TypeError):
            continue  # half a line


def _training(lines: Sequence[Mapping[str, Any]], steps: Any) -> dict[str, Any]:
    logged = [line for line in lines if "loss" in line][-_LINES:]
    evaluated = [line for line in lines if "eval_loss" in line]
    last, seen = (logged or lines)[-1], evaluated[-1] if evaluated else {}
    total = steps if isinstance(steps, int) else None
    done = max(line["step"] for line in lines[-2:])
    rate, tokens_rate = _rate(logged, "step"), _rate(logged, "tokens")
    return {
        "done": done,
        "total": total,
        "rate": rate,
        "tokens_rate": tokens_rate,
        "seconds_left": (total - done) / rate if rate and total is not None else None,
        **{
            key: last.get(key)
            for key in ("loss", "objectives", "learning_rate", "first_token_accuracy", "memory_gib")
        },
        "eval_step": seen.get("step"),
        **{key: seen.get(key) for key in ("eval_loss", "eval_first_token_accuracy")},
        "best_eval_loss": min((line["eval_loss"] for line in evaluated), default=None),
    }


def _rate(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """How fast a number grows, a second, over the logged steps of the last attempt."""
    points = [(line["seconds"], line[key]) for line in lines if key in line and "seconds" in line]
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return None
    return float((points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0]))


def _evaluation(log: str) -> dict[str, Any]:
    """Answers so far, from the log's last line of progress."""
    for line in reversed(log.splitlines()):
        if found := _PROGRESS.match(line):
            done, total = (int(found[key].replace(",", "")) for key in ("done", "total"))
            rate = float(found["rate"])
            left = (total - done) / rate if rate else None
            return {"done": done, "total": total, "unit": found["unit"], "rate": rate, "seconds_left": left}
    return {}

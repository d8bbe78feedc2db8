"""What in two looks at a launch deserves an alarm: one rule each, told once until it is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from latentwire.launching.launch_record import LaunchPlan

IDLE_PERCENT = 5
JUDGED = "did not hold."
"""How `latentwire run` ends a study that is complete and failed a gate: there is nothing to be started again."""
_BEATS_SECONDS = 120
TRACEBACK = "Traceback (most recent call last)"
_LEAST_BYTES, _LEAST_SHARE = 64 << 20, 0.02


def full(look: dict[str, Any]) -> bool:
    """Whether the disk over there has no room to go on."""
    return bool(look["disk"]["free"] < min(_LEAST_BYTES, _LEAST_SHARE * look["disk"]["total"]))


def idle_seconds(look: dict[str, Any]) -> float:
    """Seconds since anything of the run moved, by the clock over there."""
    worker = look["worker"] or {}
    return float(look["now"] - max(look["moved"], worker.get("started", 0)))


@dataclass
class Alarms:
    """Judges one look after another.

    Attributes:
        stalled: Whether the last look found a step that does not move.
    """

    plan: LaunchPlan
    stalled: bool = False
    _raised: set[str] = field(default_factory=set)
    _gpu_idle_since: float | None = None
    _traceback: int = 0

    def judge(self, look: dict[str, Any], *, at_work: bool) -> list[str]:
        """Sentences about what is wrong now and was not before."""
        now = dict(self._wrong(look, at_work))
        self._raised &= now.keys()
        new = [sentence for key, sentence in now.items() if key not in self._raised]
        self._raised |= now.keys()
        return new

    def _wrong(self, look: dict[str, Any], at_work: bool) -> Iterator[tuple[str, str]]:
        ended = (look["worker"] or {}).get("ended")
        if not at_work and look["worker"] is not None and ended is None:
            yield "dead", "the process is dead: it ended without a word, as a kill ends it"
        # A job that waits in a queue has no heartbeat, and is not stalled.
        beats = look["worker"] is not None and look["now"] - look["worker"].get("beat", 0) < _BEATS_SECONDS
        self.stalled = at_work and beats and ended is None and idle_seconds(look) > 60 * self.plan.stall_minutes
        if ended is not None and ended["why"] == "step" and ended["status"] and JUDGED not in look["tail"]:
            last = "".join(look["tail"].strip().splitlines()[-1:])[-300:]
            yield f"ended {ended['at']}", f"{ended['step']} ended with status {ended['status']}: {last}"
        if self.stalled:
            yield "stalled", f"nothing has moved for {idle_seconds(look) / 60:.0f} minutes"
        if full(look):
            free, total = (look["disk"][key] >> 20 for key in ("free", "total"))
            yield "full", f"the disk is full: {free} MiB of {total} MiB are free"
        if TRACEBACK in look["tail"]:
            last = look["tail"].partition(TRACEBACK)[2].strip().splitlines()[-1:]
            yield f"traceback {last}", f"a traceback in the log: {''.join(last)[:300]}"
        for run in look["runs"]:
            if run["status"] == "failed":
                yield f"failed {run['run']} {run.get('error')}", f"{run['run']} failed: {run.get('error')}"
        if self._idle(look, at_work):
            yield "idle", f"the GPUs are idle: {look['gpus']} percent"

    def _idle(self, look: dict[str, Any], at_work: bool) -> bool:
        step = (look["worker"] or {}).get("step")
        if not at_work or step != "run" or not look["gpus"] or max(look["gpus"]) >= IDLE_PERCENT:
            self._gpu_idle_since = None
            return False
        self._gpu_idle_since = self._gpu_idle_since or look["now"]
        return bool(look["now"] - self._gpu_idle_since > 60 * self.plan.stall_minutes)

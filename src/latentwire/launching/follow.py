"""Follows a launch from its first contact to its last: every fact is asked, none is remembered.

Killed at any time, it is started again and goes on: the worker there knows whether it is at work, the folder there
which files it has, and the runs here which of them have arrived.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.launching import alarms
from latentwire.launching.alarms import Alarms
from latentwire.launching.far_machine import FarMachine
from latentwire.launching.homecoming import DamagedOnArrival, Homecoming
from latentwire.launching.launch_record import Launch
from latentwire.launching.payload import STUDY, WORK, Payload
from latentwire.launching.targets import Target
from latentwire.launching.transport import Unreachable
from latentwire.runs.store import ENDED, Run

BAD_INPUT = 2
_RESERVE_SHARE, _RESERVE_SECONDS = 0.1, 600.0
"""The part of a budget that is kept for bringing results home."""


@dataclass
class Following:
    """One launcher at work.

    Attributes:
        payload: What travels; None follows a launch that has started.
        runs: The folder of all runs, here.
    """

    launch: Launch
    target: Target
    payload: Payload | None
    runs: Path
    machine: FarMachine | None = None
    silent_since: float | None = None
    stopping: bool = False
    _alarms: Alarms = field(init=False)
    _problem: str = ""
    _shown: int | None = None

    def __post_init__(self) -> None:
        self._alarms = Alarms(self.launch.record.plan)

    def go(self, *, detach: bool = False) -> int:
        """Follow to the end, or, with `detach`, until the worker has started.

        Returns:
            The exit status: 0 for a study that is done and home, 1 otherwise.

        Raises:
            UserError: Something that the user can correct.
        """
        while True:
            try:
                status = self._step(detach)
                self.silent_since = None
                if status is not None:
                    return status
            except Unreachable as error:
                if (status := self._unanswered(str(error))) is not None:
                    return status
            except (DamagedOnArrival, OSError) as error:
                if (problem := f"{type(error).__name__}: {error}") != self._problem:
                    self.alarm(problem)
                self._problem = problem
            time.sleep(self.launch.record.plan.every)

    def _step(self, detach: bool) -> int | None:
        """Contact the machine once, and do what is due. Returns the exit status once it is over."""
        record = self.launch.record
        if self.machine is None:
            self.target.provide(self.launch)
            folder = record.home or record.plan.folder or self.target.folder(self.launch)
            python = f"{record.plan.environment}/bin/python" if record.plan.environment else record.plan.python
            machine = FarMachine.reach(self.target.transport, folder, python)
            self.launch.write(home=machine.folder, python=machine.python)
            if record.state == "begun":
                if self.payload is None:
                    raise UserError("launch: it has never started; give the whole command again.")
                self.launch.note(f"reached {machine.transport.name}: {machine.python}, {machine.folder}")
                machine.prepare(self.payload.pieces, self.launch.note)
                home = Homecoming(machine, self.runs, self.launch.live)
                machine.send(home.known(self.payload.study, machine.look()), self.launch.note)
                self._start(machine)
            self.machine = machine
            if self.stopping:
                self.target.stop(machine, self.launch)
            if self.silent_since is not None:
                self.launch.note("it answers again")
        if detach:
            return 0
        return self._watch(self.machine)

    def _start(self, machine: FarMachine, *, kill: bool = False) -> None:
        if kill:
            self.target.stop(machine, self.launch, kill=True)
        if not self.target.start(machine, self.job(machine), self.launch):
            self.launch.write(state="started", starts=max(1, self.launch.record.starts))
            self.launch.note("it is at work already")
            return
        starts = self.launch.record.starts + 1
        self.launch.write(state="started", starts=starts)
        allowed = self.launch.record.plan.restart
        self.launch.note("started" if starts == 1 else f"started again ({starts - 1} of {allowed})")

    def job(self, machine: FarMachine) -> Mapping[str, Any]:
        """What the worker is told; the values of forwarded variables are in it, and it is never written here."""
        plan = self.launch.record.plan
        missing = [name for name in plan.forwarded if name not in os.environ]
        if missing:
            raise UserError(f"--env: found no variable {missing[0]} here, expected one that is set.")
        steps = []
        python = machine.python
        if plan.environment is None:
            environment = f"{os.path.dirname(machine.folder)}/environments/{self.launch.record.environment}"
            install = ["/bin/sh", f"{machine.folder}/install.sh", machine.python, environment]
            steps.append(["install", [*install, f"{machine.folder}/requirements", machine.uv]])
            python = f"{environment}/bin/python"
        command = [python, "-m", "latentwire.cli", "run", STUDY, "--runs", f"{machine.folder}/runs"]
        steps.append(["run", [*command, *self._arguments()]])
        return {
            "steps": steps,
            "cwd": WORK,
            "environment": {"PYTHONPATH": f"{machine.folder}/package", "PYTHONUNBUFFERED": "1"},
            "seconds": self._worker_seconds(),
            "grace": plan.grace_seconds,
            "secret": {name: os.environ[name] for name in plan.forwarded},
        }

    def _arguments(self) -> list[str]:
        sets = [word for change in self.launch.record.changes for word in ("--set", change)]
        return [*self.launch.record.plan.arguments, *sets]

    def _watch(self, machine: FarMachine) -> int | None:
        look = machine.look()
        home = Homecoming(machine, self.runs, self.launch.live)
        self._show(look, home)
        at_work = self.target.at_work(look, self.launch)
        for sentence in self._alarms.judge(look, at_work=at_work):
            self.alarm(sentence)
        home.mirror(look)
        self._bring(home, look)
        ended = (look["worker"] or {}).get("ended")
        if at_work and ended is None:
            if self._alarms.stalled and self._may_restart(look):
                self._start(machine, kill=True)
            return None
        if self._again(look, ended):
            if self._may_restart(look):
                self._start(machine, kill=bool(look["alive"]))
                return None
            if alarms.full(look) and self._starts_left() and self.left() > 0:
                return None  # until there is room again
        return self._over(machine, home, ended)

    def _again(self, look: dict[str, Any], ended: dict[str, Any] | None) -> bool:
        """Whether what happened is worth another start."""
        if ended is None:
            return True  # killed
        if self.stopping or ended["why"] != "step" or ended["status"] in (0, BAD_INPUT):
            return False
        return ended["step"] != "run" or ended["status"] != 1 or alarms.JUDGED not in look["tail"]

    def _may_restart(self, look: dict[str, Any]) -> bool:
        return self._starts_left() and not alarms.full(look) and self.left() > 0

    def _starts_left(self) -> bool:
        return self.launch.record.starts <= self.launch.record.plan.restart

    def _bring(self, home: Homecoming, look: dict[str, Any], *, last: bool = False) -> None:
        for name in home.results(look, last=last):
            self.launch.write(arrived=(*self.launch.record.arrived, name))
            self.launch.note(f"{name} is home, every file verified")

    def _over(self, machine: FarMachine, home: Homecoming, ended: dict[str, Any] | None) -> int:
        """Everything is asked once more, brought home and verified; then the machine goes."""
        look = machine.look()
        self._show(look, home)
        self._bring(home, look, last=True)
        expected = [run["run"].removeprefix("runs/") for run in look["runs"] if run["status"] in ENDED]
        for name in expected:
            if changed := Run.read(self.runs / name).changed_artifacts():
                raise DamagedOnArrival(f"{name}/{changed[0]} has changed since it arrived")
        done = ended is not None and ended["why"] == "step" and not self._again(look, ended)
        if not done:
            for name in home.unfinished(machine.leftovers()):
                self.launch.note(f"{name} is home unfinished: it can be resumed here or on another machine")
        machine.arrived()
        what = "killed" if ended is None else "out of budget" if ended["why"] == "budget" else ended["why"]
        if ended is not None and ended["why"] == "step":
            failed = f"{ended['step']} ended with status {ended['status']}"
            what = "done" if ended["status"] == 0 else "complete, but a gate did not hold" if done else failed
        return self._end(f"{what}; {len(expected)} runs are home in {self.runs}", 0 if what == "done" else 1)

    def _end(self, outcome: str, status: int) -> int:
        gone = self.target.down(self.launch)
        if gone is False:
            self.alarm("the machine is NOT confirmed gone: look at your account")
            status = 1
        if gone:
            outcome += "; given back, asked again and confirmed"
        down = None if gone is None else "confirmed" if gone else "failed"
        self.launch.write(state="ended", outcome=outcome, status=status, down=down)
        self.launch.note(outcome)
        return status

    def _unanswered(self, problem: str) -> int | None:
        """The machine does not answer: wait, raise an alarm, and at the end of patience or budget give up."""
        self.machine = None
        plan, now = self.launch.record.plan, time.time()
        if self.silent_since is None:
            self.silent_since = now
            self.launch.note(f"no answer ({problem}); asking again every {plan.every:g} s")
        silent = now - self.silent_since
        never = self.launch.record.starts == 0
        if self.left() <= 0:
            return self._end("out of budget while the machine did not answer; what had not arrived is lost", 1)
        if silent > 60 * plan.patience_minutes:
            if never:
                self.alarm(f"it has not answered for {silent / 60:.0f} minutes and nothing had started there")
                return self._end("given up: the machine never answered", 1)
            self.alarm(f"it has not answered for {silent / 60:.0f} minutes; it may still cost money")
            self.silent_since = now
        return None

    def left(self) -> float:
        """Seconds of the budget that are left; infinite without one."""
        record = self.launch.record
        if record.plan.hours is None:
            return float("inf")
        return record.created + 3600 * record.plan.hours - time.time()

    def _worker_seconds(self) -> float | None:
        hours = self.launch.record.plan.hours
        if hours is None:
            return None
        return max(0.0, self.left() - min(_RESERVE_SHARE * 3600 * hours, _RESERVE_SECONDS))

    def _show(self, look: dict[str, Any], home: Homecoming) -> None:
        """Fetch and print what the worker has printed since."""
        log = self.launch.folder / "log.txt"
        if self._shown is None or self._shown > look["log"]:
            self._shown = min(log.stat().st_size if log.is_file() else 0, look["log"])
        home.grow("log.txt", log, look["log"])
        if not log.is_file():
            return
        with log.open("rb") as file:
            file.seek(self._shown)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._shown += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            print(f"         | {line}", flush=True)

    def alarm(self, sentence: str) -> None:
        """Keep, print and pass on an alarm."""
        self.launch.note(sentence, alarm=True)
        command = self.launch.record.plan.alarm
        if command is not None:
            told = {**os.environ, "LATENTWIRE_ALARM": sentence, "LATENTWIRE_LAUNCH": self.launch.record.name}
            try:
                subprocess.run(command, shell=True, env=told, timeout=60, stdin=subprocess.DEVNULL)
            except subprocess.TimeoutExpired:
                self.launch.note("the alarm's own command did not end within a minute")

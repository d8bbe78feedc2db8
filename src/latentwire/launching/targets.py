"""Where a study is launched: what each kind of target provides, starts and gives back."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latentwire.errors import UserError
from latentwire.launching.far_machine import FarMachine
from latentwire.launching.launch_record import Launch, LaunchPlan
from latentwire.launching.transport import Here, OverSsh, Transport, Unreachable

FOLDER = "latentwire-launches"
CONFIRMATIONS = 20
"""How often it is asked whether a machine is gone."""


class Target(Protocol):
    """A place where a study can be carried out."""

    @property
    def transport(self) -> Transport:
        """How it is reached."""
        ...

    def folder(self, launch: Launch) -> str:
        """The launch's folder there: absolute, or below the home folder."""
        ...

    def provide(self, launch: Launch) -> None:
        """Make sure that there is a machine. Raises `Unreachable` while there is none yet."""
        ...

    def start(self, machine: FarMachine, job: Mapping[str, Any], launch: Launch) -> bool:
        """Start the worker; False if it is at work already."""
        ...

    def stop(self, machine: FarMachine, launch: Launch, *, kill: bool = False) -> None:
        """Ask the worker to end, or kill it."""
        ...

    def at_work(self, look: dict[str, Any], launch: Launch) -> bool:
        """Whether the job still runs, or will run again by itself."""
        ...

    def down(self, launch: Launch) -> bool | None:
        """Give the machine back, and ask whether it is gone; None where there is nothing to give back."""
        ...


class DetachedWorker:
    """What the targets share whose worker is started over ssh, detached, below the home folder there."""

    def folder(self, launch: Launch) -> str:
        """Below the home folder there."""
        return f"{FOLDER}/{launch.record.name}"

    def start(self, machine: FarMachine, job: Mapping[str, Any], launch: Launch) -> bool:
        """Start a detached worker."""
        return machine.start(job)

    def stop(self, machine: FarMachine, launch: Launch, *, kill: bool = False) -> None:
        """Signal the worker, or, to kill, all that it started too."""
        machine.stop(kill=kill)

    def at_work(self, look: dict[str, Any], launch: Launch) -> bool:
        """Whether the worker holds its lock."""
        return bool(look["alive"])


@dataclass
class SshTarget(DetachedWorker):
    """A machine that is there already, behind ssh; or this machine, for a rehearsal."""

    transport: Transport

    def provide(self, launch: Launch) -> None:
        """It is there already."""

    def down(self, launch: Launch) -> bool | None:
        """Run the plan's own command, then ask its own check, or the machine itself, until it is gone."""
        plan = launch.record.plan
        if plan.down is None:
            return None
        done = _command(plan.down, launch)
        if done.returncode:
            why = done.stderr.strip()[-300:]
            launch.note(f"{plan.down!r} ended with status {done.returncode}: {why}", alarm=True)
        for _ in range(CONFIRMATIONS):
            if self._gone(plan, launch):
                return True
            time.sleep(plan.every)
        return False

    def _gone(self, plan: LaunchPlan, launch: Launch) -> bool:
        if plan.check_down is not None:
            return _command(plan.check_down, launch).returncode == 0
        try:
            self.transport.run("true", timeout=30)
        except Unreachable:
            return True
        return False


def _command(command: str, launch: Launch) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LATENTWIRE_LAUNCH": launch.record.name}
    try:
        return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=600, env=environment)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "no end within 10 minutes")


def over_ssh(plan: LaunchPlan) -> SshTarget:
    """The target of `ssh:HOST[:PORT]` or `here[:FOLDER]`.

    Raises:
        UserError: It is neither.
    """
    kind, _, rest = plan.on.partition(":")
    if kind == "here":
        return SshTarget(Here(Path(rest).absolute() if rest else Path.home()))
    if kind == "ssh" and rest:
        host, colon, port = rest.rpartition(":")
        if not colon:
            return SshTarget(OverSsh(rest, None, plan.ssh_options))
        if not port.isdecimal() or not host:
            raise UserError(f"on: found {plan.on!r}, expected ssh:HOST or ssh:HOST:PORT.")
        return SshTarget(OverSsh(host, int(port), plan.ssh_options))
    raise UserError(f"on: found {plan.on!r}, expected ssh:HOST[:PORT], slurm, sky:CLOUD or here[:FOLDER].")

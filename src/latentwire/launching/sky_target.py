"""A machine of a cloud, through SkyPilot's YAML and command line, which live in an environment of their own.

SkyPilot provides the machine, writes its ssh alias, and takes it away. All else goes over ssh as to any other
machine. A guard on the machine holds it until everything is home or the budget is spent; then SkyPilot's own
autodown takes it, whether or not anybody at home is awake.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.launching.launch_record import Launch, LaunchPlan
from latentwire.launching.targets import CONFIRMATIONS, DetachedWorker
from latentwire.launching.transport import OverSsh, Transport, Unreachable

TASK = "task.yaml"
PLACELESS = ("vast", "runpod")
"""Clouds that can mount no bucket: what is on the disk is gone with the machine."""
IDLE_MINUTES = 10
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_GUARD = """\
# Holds the machine until everything is home, or until the budget is spent.
end=$(( $(date +%s) + {seconds} ))
while [ "$(date +%s)" -lt "$end" ] && [ ! -e "{folder}/arrived" ]; do sleep 10; done
"""


@dataclass
class SkyTarget(DetachedWorker):
    """A cloud.

    Attributes:
        cloud: As SkyPilot's `infra` names it, such as `lambda`, `vast` or `aws/us-east-1`.
        sky: The command.
        alias: The transport, once the machine is known by name.
    """

    cloud: str
    sky: str
    reached: Transport | None = None

    @classmethod
    def of(cls, cloud: str, plan: LaunchPlan) -> SkyTarget:
        """The target of `sky:CLOUD`.

        Raises:
            UserError: There is no `sky`, no budget, or no place for the results.
        """
        if not cloud:
            raise UserError("on: found 'sky:', expected sky:CLOUD, such as sky:lambda.")
        if plan.results not in (None, "home"):
            raise UserError(f"--results: found {plan.results!r}, expected home.")
        if cloud.split("/")[0].lower() in PLACELESS and plan.results is None:
            raise UserError(
                f"--results: found none, expected home: {cloud} mounts no bucket, and what is on its disk is lost "
                "with the machine; with --results home it waits until this launcher has everything."
            )
        if plan.hours is None:
            raise UserError("--budget-hours: found none, expected one (or --budget-dollars): a cloud costs money.")
        return cls(cloud, _sky())

    @property
    def transport(self) -> Transport:
        """Over the ssh alias that SkyPilot has written."""
        if self.reached is None:
            raise Unreachable(f"sky:{self.cloud}: there is no machine yet")
        return self.reached

    def provide(self, launch: Launch) -> None:
        """Launch the machine with its guard, once; later, only find its alias again.

        Raises:
            Unreachable: SkyPilot could not provide it now.
        """
        if launch.record.job is None:
            task = launch.folder / TASK
            write_atomically(task, yaml.safe_dump(self.task(launch), sort_keys=False))
            launch.note(f"asking SkyPilot for a machine of {self.cloud}")
            # Recorded before the machine exists: a launcher killed now must not forget that it may.
            launch.write(job=launch.record.name)
            done = self._run("launch", "--yes", "--detach-run", "--cluster", launch.record.name, str(task))
            if done.returncode:
                said = (done.stderr or done.stdout).strip()[-500:]
                launch.note(f"sky launch ended with status {done.returncode}: {said}", alarm=True)
                if self.down(launch):
                    launch.write(job=None)
                raise Unreachable(f"sky:{self.cloud} provides no machine now")
        elif self.reached is None and not self._listed(launch):
            raise Unreachable(f"sky: {launch.record.job} is not among SkyPilot's machines")
        self.reached = self.reached or OverSsh(launch.record.name, None, launch.record.plan.ssh_options)

    def task(self, launch: Launch) -> dict[str, Any]:
        """SkyPilot's YAML: the machine, its autodown, and the guard as its only job."""
        plan = launch.record.plan
        settings = {name: yaml.safe_load(value) for name, value in plan.settings.items()}
        seconds = round(max(0.0, launch.record.created + 3600 * (plan.hours or 0) - time.time()))
        autostop = {"idle_minutes": IDLE_MINUTES, "down": True}
        folder = plan.folder or self.folder(launch)
        guard = _GUARD.format(seconds=seconds, folder=folder if folder.startswith("/") else f"$HOME/{folder}")
        return {
            "name": launch.record.name,
            "resources": {"infra": self.cloud, **settings, "autostop": autostop},
            "run": guard,
        }

    def down(self, launch: Launch) -> bool | None:
        """Take the machine down, and ask SkyPilot until it is no longer listed; None if there never was one."""
        if launch.record.job is None:
            return None
        for _ in range(CONFIRMATIONS):
            self._run("down", "--yes", launch.record.job)
            if not self._listed(launch):
                return True
            time.sleep(launch.record.plan.every)
        return False

    def _listed(self, launch: Launch) -> bool:
        """Whether SkyPilot, having asked the cloud, knows the machine; an answer that fails counts as yes."""
        done = self._run("status", "--refresh", str(launch.record.job))
        rows = [_COLOR.sub("", line).split() for line in done.stdout.splitlines()]
        return bool(done.returncode) or any(row[:1] == [launch.record.job] for row in rows)

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.sky, *words], capture_output=True, text=True, timeout=3600, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return subprocess.CompletedProcess(words, 124, "", f"{type(error).__name__}: {error}")


def _sky() -> str:
    """SkyPilot's command: `$LATENTWIRE_SKY`, or `sky` on the PATH or in the usual tool environments."""
    named = os.environ.get("LATENTWIRE_SKY") or shutil.which("sky")
    usual = Path.home() / ".local" / "bin" / "sky"
    found = named or (str(usual) if usual.exists() else None)
    if found is None:
        raise UserError(
            "on: found no SkyPilot, expected its command `sky`: install it in an environment of its own "
            "(uv tool install skypilot, or pipx install skypilot) or name it in LATENTWIRE_SKY."
        )
    return found

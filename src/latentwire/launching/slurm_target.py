"""A Slurm cluster, from its login node: submitit submits a job that is requeued and resumes when it is preempted.

The launch's folder lies on the file system that login node and nodes share, and the job runs in this very
environment unless the plan names another.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from latentwire.errors import UserError
from latentwire.launching import worker
from latentwire.launching.far_machine import FarMachine
from latentwire.launching.launch_record import Launch
from latentwire.launching.targets import CONFIRMATIONS
from latentwire.launching.transport import Here, Unreachable

PREEMPTED = "preempted"
_LINGER = 600.0
"""Seconds after SIGTERM in which Slurm either requeues or kills."""
_DAY = 24 * 60


class SlurmStudy:
    """What submitit calls on the node: the worker. Preempted, it saves a snapshot and asks for a requeue.

    Args:
        folder: The launch's folder.
        job: What the worker is told, without any secret.
        forwarded: Variables that the job has from the shell that submitted it, and that no log shows.
    """

    def __init__(self, folder: str, job: Mapping[str, Any], forwarded: Sequence[str]) -> None:
        self.folder, self.job, self.forwarded = folder, job, forwarded
        self._worker: worker.Worker | None = None

    def __call__(self) -> int:
        """Carry the study out, or on."""
        deadline = time.monotonic() + 60  # an earlier attempt's last process may still be ending
        while (lock := worker.locked(Path(self.folder))) is None and time.monotonic() < deadline:
            time.sleep(1)
        if lock is None:
            raise RuntimeError(f"{self.folder} is being worked on by another process")
        secret = {name: os.environ[name] for name in self.forwarded if name in os.environ}
        self._worker = worker.Worker(Path(self.folder), lock, {**self.job, "secret": secret}, _LINGER)
        return self._worker.work()

    def checkpoint(self) -> Any:
        """Called by submitit on the preemption signal: end the training with a snapshot, and come again."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            self._worker.stop(PREEMPTED)
            self._worker.end()
        return DelayedSubmission(SlurmStudy(self.folder, self.job, self.forwarded))


class SlurmTarget:
    """A Slurm cluster whose login node this machine is."""

    def __init__(self) -> None:
        self.transport = Here(Path.home(), "slurm")

    def folder(self, launch: Launch) -> str:
        """In the launch's own folder, which the nodes see too."""
        return str((launch.folder / "far").absolute())

    def provide(self, launch: Launch) -> None:
        """The cluster is there already."""

    def start(self, machine: FarMachine, job: Mapping[str, Any], launch: Launch) -> bool:
        """Submit a job, unless one is queued or runs.

        Raises:
            UserError: submitit is missing, Slurm is, or Slurm refuses the job.
        """
        if self._state(launch) is not None:
            return False
        try:
            import submitit
        except ImportError as error:
            raise UserError("on: found no submitit, expected it: pip install 'latentwire[slurm]'.") from error
        plan = launch.record.plan
        settings = {name: yaml.safe_load(value) for name, value in plan.settings.items()}
        extra = {"requeue": True, **settings.pop("slurm_additional_parameters", {})}
        minutes = _DAY if plan.hours is None else max(1, round(60 * plan.hours))
        quiet = {key: value for key, value in job.items() if key != "secret"}
        try:
            executor = submitit.AutoExecutor(f"{machine.folder}/slurm", cluster="slurm", slurm_max_num_timeout=100)
            usual = {"name": launch.record.name, "timeout_min": minutes, "slurm_additional_parameters": extra}
            executor.update_parameters(**(usual | settings))
            submitted = executor.submit(SlurmStudy(machine.folder, quiet, plan.forwarded))
        except (RuntimeError, ValueError, NameError, submitit.core.utils.FailedJobError) as error:
            raise UserError(f"on: slurm: {' '.join(str(error).split())[:400]}") from error
        launch.write(job=submitted.job_id)
        launch.note(f"submitted as job {submitted.job_id}")
        return True

    def stop(self, machine: FarMachine, launch: Launch, *, kill: bool = False) -> None:
        """Let the job save a snapshot, then cancel it; to kill, cancel at once."""
        if launch.record.job is None:
            return
        if not kill and self._state(launch) == "RUNNING":
            _slurm("scancel", "--signal=TERM", launch.record.job)
            deadline = time.time() + launch.record.plan.grace_seconds
            while machine.look()["worker"].get("child") and time.time() < deadline:
                time.sleep(1)
        _slurm("scancel", launch.record.job)
        for _ in range(CONFIRMATIONS):
            if self._state(launch) is None:
                return
            time.sleep(1)

    def at_work(self, look: dict[str, Any], launch: Launch) -> bool:
        """Whether the job is queued, runs, or is about to be requeued."""
        return self._state(launch) is not None

    def down(self, launch: Launch) -> bool | None:
        """Cancel the job if it is still there, and ask again."""
        if launch.record.job is not None and self._state(launch) is not None:
            _slurm("scancel", launch.record.job)
        for _ in range(CONFIRMATIONS):
            if self._state(launch) is None:
                return True
            time.sleep(1)
        return False

    def _state(self, launch: Launch) -> str | None:
        """The job's state in the queue; None if it is in there no longer."""
        if launch.record.job is None:
            return None
        state = _slurm("squeue", "--noheader", "--format=%T", f"--jobs={launch.record.job}")
        return None if state in ("", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL") else state


def _slurm(*command: str) -> str:
    """What a command of Slurm prints. Raises `Unreachable` if the controller does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise UserError(f"on: found no {command[0]} here, expected a login node of a Slurm cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"slurm: {command[0]} gives no answer") from error
    if done.returncode and "Invalid job id" not in done.stderr:
        raise Unreachable(f"slurm: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()

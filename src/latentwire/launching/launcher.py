"""What the commands `launch` and `launches` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from latentwire.errors import UserError, one_of
from latentwire.launching import payload as packing
from latentwire.launching.follow import Following
from latentwire.launching.launch_record import Launch, LaunchPlan, launches
from latentwire.launching.sky_target import SkyTarget
from latentwire.launching.slurm_target import SlurmTarget
from latentwire.launching.targets import Target, over_ssh
from latentwire.studies import templates


def launch(
    plan: LaunchPlan,
    changes: Sequence[str],
    preset: str | None,
    runs: Path,
    root: Path,
    *,
    extras: bool = False,
    detach: bool = False,
    dry_run: bool = False,
) -> int:
    """Carry a study out elsewhere and bring its results home; the same call goes on with a launch that was begun.

    Returns:
        The exit status.

    Raises:
        UserError: Bad input, or a machine that cannot be used.
    """
    _check(plan)
    if plan.on == "slurm" and plan.environment is None:
        plan = plan.model_copy(update={"environment": sys.prefix})  # a cluster's nodes share it
    where = target(plan)
    load = packing.gather(plan.study, changes, preset, extras=extras)
    if dry_run:
        for piece in load.pieces:
            print(f"{piece.size:>12,}  {piece.sha256[:12]}  {piece.path}")
        print(f"{plan.on}: {len(load.pieces)} files would be sent; nothing was done")
        return 0
    begun = Launch.begin(root, plan, load)
    with begun.followed():
        if begun.record.state == "ended":
            print(f"{begun.record.name}: {begun.record.outcome}")
            return begun.record.status or 0
        print(f"{begun.record.name}: the launch is in {begun.folder}; stop following with Ctrl-C, the run goes on")
        return Following(begun, where, load, runs).go(detach=detach)


def target(plan: LaunchPlan) -> Target:
    """The target that a plan names.

    Raises:
        UserError: There is no such kind of target, or it lacks something.
    """
    kind, _, rest = plan.on.partition(":")
    if kind == "slurm":
        return SlurmTarget()
    if kind == "sky":
        return SkyTarget.of(rest, plan)
    return over_ssh(plan)


def watch(name: str, runs: Path, root: Path) -> int:
    """Follow a launch that has started. Raises `UserError` if there is none."""
    return _follow(find(name, root), runs, stop=False)


def stop(name: str, runs: Path, root: Path) -> int:
    """Stop a launch's run, bring home what there is, and give the machine back."""
    return _follow(find(name, root), runs, stop=True)


def _follow(begun: Launch, runs: Path, *, stop: bool) -> int:
    with begun.followed():
        if begun.record.state == "ended":
            print(f"{begun.record.name}: {begun.record.outcome}")
            return begun.record.status or 0
        following = Following(begun, target(begun.record.plan), None, runs)
        following.stopping = stop
        return following.go()


def find(name: str, root: Path) -> Launch:
    """The launch called `name`: a folder, or a launch below `root`."""
    for folder in (Path(name), root / name):
        if (folder / "launch.json").is_file():
            return Launch.read(folder)
    known = [each.record.name for each in launches(root)]
    expected = one_of(name, known) if known else "a launch's folder"
    raise UserError(f"launch: found no launch {name!r} in {root}, expected {expected}.")


def listed(root: Path) -> list[str]:
    """A line for each launch."""
    lines = []
    for each in launches(root):
        record = each.record
        alarms = sum(event.alarm for event in record.events)
        state = record.outcome or record.state
        counts = f"{len(record.arrived):>3} home {alarms:>3} alarms"
        lines.append(f"{record.name:32} {record.plan.on:28} {counts}  {state}")
    return lines


def _check(plan: LaunchPlan) -> None:
    for name in ("hours", "stall_minutes", "patience_minutes", "every", "grace_seconds"):
        value = getattr(plan, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')}: found {value}, expected a number above 0.")
    if plan.restart < 0:
        raise UserError(f"--restart: found {plan.restart}, expected 0 or more.")
    if not Path(plan.study).is_file() and plan.study not in (known := templates()):
        raise UserError(
            f"study: found no file {plan.study!r}, expected a YAML file or {one_of(plan.study, known)}."
        )

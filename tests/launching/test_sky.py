"""SkyPilot provides a machine and takes it away; its own parser reads what is generated."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from latentwire.errors import UserError
from latentwire.launching.follow import Following
from latentwire.launching.launch_record import Launch
from latentwire.launching.sky_target import TASK, SkyTarget
from latentwire.runs.store import runs
from tests.support.launches import Rehearsal

SKY = os.environ.get("LATENTWIRE_SKY") or shutil.which("sky")

COMMAND = """#!/bin/sh
# Stands for SkyPilot's command: one file for each machine that is up.
echo "$*" >> {folder}/asked
case $1 in
    launch) [ ! -e {folder}/none_left ] || {{ echo "no capacity" >&2; exit 1; }}; touch "{folder}/up.$5" ;;
    down) [ -e {folder}/stuck ] || rm -f "{folder}/up.$3" ;;
    status) [ -e "{folder}/up.$3" ] && echo "$3  UP" || echo "Cluster(s) not found: $3" ;;
esac
"""


@pytest.fixture
def sky(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a command that notes what it is asked."""
    folder = rehearsal.folder / "sky"
    folder.mkdir()
    (folder / "sky").write_text(COMMAND.format(folder=folder))
    (folder / "sky").chmod(0o755)
    monkeypatch.setenv("LATENTWIRE_SKY", str(folder / "sky"))
    return folder


def following(rehearsal: Rehearsal, on: str = "sky:lambda", **changes: object) -> Following:
    """A launch on a cloud whose machine is reached in another folder."""
    plan = rehearsal.plan(**({"on": on, "hours": 1.0} | changes))
    target = SkyTarget.of(on.partition(":")[2], plan)
    target.reached = rehearsal.transport
    begun = Launch.begin(rehearsal.home / "launches", plan, rehearsal.payload())
    return Following(begun, target, rehearsal.payload(), rehearsal.runs)


def test_a_machine_is_provided_used_and_taken_down(rehearsal: Rehearsal, sky: Path) -> None:
    assert following(rehearsal).go() == 0
    assert len(runs(rehearsal.runs)) == 3
    name = rehearsal.launched.record.name
    asked = [line.split()[0] for line in (sky / "asked").read_text().splitlines()]
    assert asked == ["launch", "down", "status"]
    assert not (sky / f"up.{name}").exists()
    assert rehearsal.launched.record.down == "confirmed"
    assert (rehearsal.far / "place" / "arrived").exists(), "the guard lets the machine go"


def test_a_machine_that_sky_cannot_take_down_raises_an_alarm(
    rehearsal: Rehearsal, sky: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentwire.launching.sky_target.CONFIRMATIONS", 2)
    (sky / "stuck").touch()
    assert following(rehearsal).go() == 1
    assert "NOT confirmed gone" in rehearsal.alarms()


def test_a_cloud_without_capacity_is_asked_again_and_costs_nothing(rehearsal: Rehearsal, sky: Path) -> None:
    (sky / "none_left").touch()
    assert following(rehearsal, patience_minutes=0.2 / 60).go() == 1
    assert "no capacity" in rehearsal.alarms()
    assert not list(sky.glob("up.*"))


@pytest.mark.parametrize("cloud", ["vast", "runpod"])
def test_a_cloud_whose_disk_goes_with_the_machine_needs_a_place_for_results(
    rehearsal: Rehearsal, sky: Path, cloud: str
) -> None:
    with pytest.raises(UserError, match="--results: found none, expected home"):
        following(rehearsal, f"sky:{cloud}")
    assert following(rehearsal, f"sky:{cloud}", results="home").target.task  # type: ignore[attr-defined]


def test_a_cloud_without_a_budget_is_refused(rehearsal: Rehearsal, sky: Path) -> None:
    with pytest.raises(UserError, match="--budget-hours"):
        following(rehearsal, hours=None)


def test_the_guard_holds_the_machine_until_everything_is_home_or_the_budget_spent(
    rehearsal: Rehearsal, sky: Path
) -> None:
    made = following(rehearsal, hours=1.2 / 3600, folder="place")
    guard = made.target.task(made.launch)["run"].replace("sleep 10", "sleep 0.1")  # type: ignore[attr-defined]
    ended = subprocess.run(["/bin/sh", "-c", guard], env={"HOME": str(rehearsal.far), "PATH": "/usr/bin:/bin"})
    assert ended.returncode == 0, "the budget ends it"
    (rehearsal.far / "place" / "arrived").touch()
    long = guard.replace("+ 1 ", "+ 1000 ")
    assert long != guard
    subprocess.run(
        ["/bin/sh", "-c", long], env={"HOME": str(rehearsal.far), "PATH": "/usr/bin:/bin"}, timeout=10, check=True
    )


@pytest.mark.slow
@pytest.mark.skipif(SKY is None, reason="SkyPilot is not installed; LATENTWIRE_SKY names its command")
def test_skypilots_own_parser_reads_the_tasks(rehearsal: Rehearsal, sky: Path) -> None:
    clouds = ("vast", "runpod", "lambda", "aws/us-east-1")
    paths = []
    for number, cloud in enumerate(clouds):
        settings = {"accelerators": "H100:1", "disk_size": "200"}
        plan = rehearsal.plan(on=f"sky:{cloud}", hours=2.0, results="home", settings=settings)
        begun = Launch.begin(rehearsal.home / "launches", plan, rehearsal.payload())
        paths.append(rehearsal.home / f"{number}-{TASK}")
        paths[-1].write_text(yaml.safe_dump(SkyTarget.of(cloud, plan).task(begun), sort_keys=False))
    program = (
        "import sky, sys\n"
        "for path in sys.argv[1:]:\n"
        "    (r,) = sky.Task.from_yaml(path).resources\n"
        "    print(str(r.cloud).lower(), r.accelerators, r.autostop_config.down, r.autostop_config.idle_minutes)\n"
    )
    said = subprocess.run(
        [str(Path(str(SKY)).parent / "python"), "-c", program, *map(str, paths)],
        env={**os.environ, "HOME": str(rehearsal.home)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [f"{cloud.split('/')[0]} {{'H100': 1}} True 10" for cloud in clouds]
    assert said.stdout.splitlines()[-4:] == expected

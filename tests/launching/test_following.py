"""A launch ends with every run at home, whatever breaks on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.launching.follow import Following
from latentwire.runs.store import runs
from tests.support.launches import STAGES, Rehearsal, may_mount, processes


def assert_home(rehearsal: Rehearsal) -> None:
    """Every stage's run is at home, once, whole, and nothing unfinished stands beside it."""
    found = runs(rehearsal.runs)
    assert sorted(run.record.stage for run in found) == sorted(STAGES)
    assert [run.changed_artifacts() for run in found] == [[], [], []]
    assert {run.status for run in found} == {"done"}
    assert list(rehearsal.runs.rglob(".*.arriving")) == []
    assert processes(str(rehearsal.far)) == []


def when(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def forked(following: Following) -> int:
    """A launcher in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            following.go()
        finally:
            os._exit(0)
    return child


def test_every_run_comes_home_verified(rehearsal: Rehearsal) -> None:
    assert rehearsal.launch() == 0
    assert_home(rehearsal)
    assert rehearsal.alarms() == ""
    assert rehearsal.starts() == 1


def test_a_killed_launcher_is_started_again_and_goes_on(rehearsal: Rehearsal) -> None:
    rehearsal.fault("wait")
    launcher = forked(rehearsal.following())
    when(lambda: len(runs(rehearsal.runs)) == 1)  # the first stage is home, the second under way
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert processes("worker.py"), "the run survives its launcher"
    (rehearsal.work / "wait").unlink()
    assert rehearsal.launch() == 0
    assert_home(rehearsal)
    assert rehearsal.starts() == 1


def test_two_launchers_do_not_follow_one_launch(rehearsal: Rehearsal) -> None:
    launch = rehearsal.following().launch
    with launch.followed(), pytest.raises(UserError, match="followed by another process"), launch.followed():
        pass


def test_a_killed_run_raises_an_alarm_and_is_started_again(rehearsal: Rehearsal) -> None:
    rehearsal.fault("kill")
    assert rehearsal.launch(restart=1) == 0
    assert "the process is dead" in rehearsal.alarms()
    assert_home(rehearsal)
    assert rehearsal.starts() == 2


def test_a_signal_for_the_worker_does_not_end_the_run(rehearsal: Rehearsal) -> None:
    """Slurm sends its preemption signal to every process of a job."""
    rehearsal.fault("wait")
    following = rehearsal.following()
    following.go(detach=True)
    when(
        lambda: (
            "place/runs" in "".join(processes("program.py")) and bool(list(rehearsal.far.glob("*/runs/*/second")))
        )
    )
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and f"{rehearsal.folder}/program.py" in _command_line(folder):
            os.kill(int(folder.name), signal.SIGUSR2)
    (rehearsal.work / "wait").unlink()
    assert following.go() == 0
    assert_home(rehearsal)


def _command_line(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_text()
    except OSError:
        return ""


def test_without_a_restart_a_killed_run_is_reported_and_the_same_command_goes_on(rehearsal: Rehearsal) -> None:
    rehearsal.fault("kill")
    assert rehearsal.launch() == 1
    assert "killed" in (rehearsal.launched.record.outcome or "")
    assert rehearsal.launch() == 0
    assert_home(rehearsal)


def test_a_stalled_run_raises_an_alarm_and_is_started_again(rehearsal: Rehearsal) -> None:
    rehearsal.fault("hang")
    assert rehearsal.launch(restart=1, stall_minutes=1.5 / 60) == 0
    assert "nothing has moved" in rehearsal.alarms()
    assert_home(rehearsal)


def test_a_traceback_raises_an_alarm_that_names_the_error(rehearsal: Rehearsal) -> None:
    rehearsal.fault("trace")
    assert rehearsal.launch(restart=1) == 0
    assert "RuntimeError: something broke" in rehearsal.alarms()
    assert_home(rehearsal)


def test_a_gate_that_does_not_hold_is_no_failure_to_be_repeated(rehearsal: Rehearsal) -> None:
    rehearsal.fault("gate")
    assert rehearsal.launch(restart=3) == 1
    assert "a gate did not hold" in (rehearsal.launched.record.outcome or "")
    assert rehearsal.alarms() == ""
    assert rehearsal.starts() == 1
    assert_home(rehearsal)


def test_a_fetch_cut_off_half_way_goes_on_where_it_was(rehearsal: Rehearsal) -> None:
    rehearsal.fault("wait")
    launcher = rehearsal.following()
    launcher.go(detach=True)
    (rehearsal.work / "wait").unlink()
    when(lambda: not processes("worker.py"))
    rehearsal.transport.cut = [300_000, 700_000, 5]
    assert rehearsal.launch() == 0
    assert_home(rehearsal)
    assert "no answer" in "".join(event.what for event in rehearsal.launched.record.events)
    sent = sum(path.stat().st_size for path in rehearsal.runs.rglob("*") if path.is_file())
    assert rehearsal.transport.received < sent + 10_000, "nothing is fetched twice"


def test_a_file_that_arrives_damaged_is_fetched_again(rehearsal: Rehearsal) -> None:
    rehearsal.transport.spoil = 4
    assert rehearsal.launch() == 0
    assert_home(rehearsal)


def test_a_file_that_never_arrives_whole_does_not_enter_the_runs(rehearsal: Rehearsal) -> None:
    rehearsal.transport.spoil = 10**6
    launcher = forked(rehearsal.following())
    when(lambda: (rehearsal.home / "launches").exists() and "wrong hash" in rehearsal.alarms())
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert runs(rehearsal.runs) == []


def test_sending_cut_off_half_way_goes_on_where_it_was(rehearsal: Rehearsal) -> None:
    rehearsal.transport.cut_sending = [200_000, 100_000]
    assert rehearsal.launch() == 0
    assert (rehearsal.work / "data.bin").read_bytes() == bytes(range(256)) * 1024
    assert_home(rehearsal)


def test_a_full_disk_raises_an_alarm_and_the_run_resumes_once_there_is_room(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    place = rehearsal.far / "place"
    if not may_mount(place):
        pytest.skip("file systems may not be mounted here")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    try:
        rehearsal.work.mkdir()
        rehearsal.fault("wait")
        launcher = forked(rehearsal.following(restart=1))
        when(lambda: len(runs(rehearsal.runs)) == 1)
        filler = place / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        (rehearsal.work / "wait").unlink()
        when(lambda: "No space left" in rehearsal.alarms() and "disk is full" in rehearsal.alarms())
        assert rehearsal.starts() == 1, "it is not started again before there is room"
        filler.unlink()
        os.waitpid(launcher, 0)
        assert rehearsal.launched.record.status == 0
        assert_home(rehearsal)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)

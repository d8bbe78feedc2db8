"""The same over a real ssh server on the loopback address."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.launching.follow import Following
from latentwire.launching.launch_record import Launch
from latentwire.launching.targets import over_ssh
from latentwire.launching.transport import OverSsh
from latentwire.runs.store import runs
from tests.support.launches import Rehearsal, processes
from tests.support.loopback import SSHD, Loopback, sshd

pytestmark = pytest.mark.skipif(SSHD is None or os.getuid() != 0, reason="no sshd here, or not root")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """An ssh server for the tests of this module."""
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def following(rehearsal: Rehearsal, server: Loopback, **changes: Any) -> Following:
    """A launch through the server."""
    on, options = f"ssh:127.0.0.1:{server.port}", tuple(server.options)
    plan = rehearsal.plan(on=on, ssh_options=options, restart=1, **changes)
    begun = Launch.begin(rehearsal.home / "launches", plan, rehearsal.payload())
    return Following(begun, over_ssh(plan), rehearsal.payload(), rehearsal.runs)


def test_bytes_pass_unchanged_both_ways(server: Loopback, tmp_path: Path) -> None:
    data = bytes(range(256)) * 2000
    (tmp_path / "data").write_bytes(data)
    received: list[bytes] = []
    transport = OverSsh("127.0.0.1", server.port, server.options)
    with (tmp_path / "data").open("rb") as file:
        answer = transport.run("cat; exit 7", give=file, take=received.append)
    assert (answer.status, b"".join(received)) == (7, data)


def test_a_key_that_is_refused_is_said_at_once(server: Loopback, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    options = [f"IdentityFile={tmp_path}/other", *server.options[1:]]
    with pytest.raises(UserError, match="does not let us in"):
        OverSsh("127.0.0.1", server.port, options).run("true")


def test_the_connection_is_cut_twice_and_everything_but_the_secret_comes_home(
    rehearsal: Rehearsal, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + os.urandom(12).hex()
    monkeypatch.setenv("HF_TOKEN", secret)
    rehearsal.fault("wait")
    launcher = os.fork()
    if launcher == 0:
        try:
            os._exit(following(rehearsal, server, forwarded=("HF_TOKEN",)).go())
        finally:
            os._exit(99)
    for _ in range(2):
        deadline = time.monotonic() + 60
        while not processes("worker.py") or not server.cut():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert processes("worker.py"), "the run survives the connection"
    (rehearsal.work / "wait").unlink()
    assert os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1]) == 0
    assert len(runs(rehearsal.runs)) == 3
    assert rehearsal.starts() == 1
    assert "the token is ***" in (rehearsal.far / "place" / "log.txt").read_text(), (
        "the run had it, and printed it"
    )
    places = [rehearsal.folder, server.folder, *Path("/tmp").glob("latentwire-launch*")]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert processes(secret) == processes(str(rehearsal.far)) == []


@pytest.mark.sweep  # two minutes of a real training, twice
def test_a_real_study_crashes_in_the_last_second_of_a_save_and_ends_with_the_same_metrics(
    tmp_path: Path, server: Loopback
) -> None:
    """By the command itself: a finetuning is killed while it gives a snapshot its name, and is started again."""
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: real\nmodel: embedded:heron\ntasks: [one_hop]\nlimit: 8\nstages:\n"
        "  tuned: {kind: finetune, wire: text, data: {kind: world, tasks: [one_hop]}, steps: 4, rows: 1,\n"
        "          row_tokens: 256, eval_samples: 4, eval_steps: 2, samples: 1}\n"
        "  after: {kind: evaluate, start_from: tuned, arms: {text: text}}\n"
    )
    crash = tmp_path / "crash"
    crash.mkdir()
    (crash / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def strike(event, args):\n"
        "    if event == 'os.rename' and str(args[0]).endswith('.last.partial') and 'tuned' in str(args[0]):\n"
        f"        flag = {str(crash / 'once')!r}\n"
        "        if os.path.isdir(args[0] if isinstance(args[0], str) else os.fsdecode(args[0])) "
        "and not os.path.exists(flag):\n"
        "            open(flag, 'w').close()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(strike)\n"
    )
    binary = tmp_path / "environment" / "bin"
    binary.mkdir(parents=True)
    (binary / "python").write_text(
        f'#!/bin/sh\nexport PYTHONPATH={crash}:$PYTHONPATH\nexec {sys.executable} "$@"\n'
    )
    (binary / "python").chmod(0o755)
    options = [word for option in server.options for word in ("--ssh-option", option)]
    command = [sys.executable, "-m", "latentwire.cli", "launch", str(study), "--every", "0.5", "--restart", "1"]
    command += ["--on", f"ssh:127.0.0.1:{server.port}", "--folder", str(tmp_path / "far" / "place"), *options]
    command += ["--environment", str(tmp_path / "environment"), "--env", "OMP_NUM_THREADS"]  # rounds as at home
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (crash / "once").exists()
    assert "started again (1 of 1)" in done.stdout
    home = [sys.executable, "-m", "latentwire.cli", "run", str(study), "--runs", str(tmp_path / "at_home")]
    subprocess.run(home, cwd=tmp_path, capture_output=True, check=True)
    ours, theirs = (sorted((tmp_path / name).glob("real/after/*/metrics.json")) for name in ("runs", "at_home"))
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
    assert processes(str(tmp_path / "far")) == []

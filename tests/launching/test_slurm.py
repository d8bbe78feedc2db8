"""On a Slurm cluster a preempted training is requeued and resumes. Skipped where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentwire.runs.store import runs


def _cluster() -> bool:
    """Whether a controller answers and has a node."""
    if shutil.which("sinfo") is None:
        return False
    done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
    return done.returncode == 0 and any(state in done.stdout for state in ("idle", "mixed"))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _cluster(), reason="no Slurm cluster answers here"),
]
STUDY = """
name: preempted
model: embedded:heron
tasks: [one_hop]
limit: 8
stages:
  tuned:
    kind: finetune
    wire: text
    data: {kind: world, tasks: [tiers]}
    steps: 24
    rows: 2
    row_tokens: 512
    eval_samples: 4
    eval_steps: 12
    samples: 1
  after: {kind: evaluate, start_from: tuned, arms: {text: text}}
"""


def test_a_training_preempted_in_its_middle_is_requeued_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "study.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "latentwire.cli", "launch", "study.yaml", "--on", "slurm", "--every", "1"]
    with (tmp_path / "out.txt").open("wb") as out:
        launcher = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    far = tmp_path / "launches"
    while not any("step 0 of" in path.read_text() for path in far.glob("*/far/log.txt")):
        assert launcher.poll() is None, (tmp_path / "out.txt").read_text()
        time.sleep(0.1)
    time.sleep(2)
    job = subprocess.run(
        ["squeue", "-h", "-o", "%i", "-n", next(far.glob("*")).name], capture_output=True, text=True
    )
    subprocess.run(["scancel", "--signal=USR2", job.stdout.strip()], check=True)
    assert launcher.wait() == 0, (tmp_path / "out.txt").read_text()
    log = next(far.glob("*/far/log.txt")).read_text()
    resumed = [line for line in log.splitlines() if line.startswith("resumed at step")]
    assert len(resumed) == 1
    assert int(resumed[0].split()[3]) > 0, "the snapshot was taken when the signal came"
    assert {run.record.stage: run.status for run in runs(tmp_path / "runs")} == {"tuned": "done", "after": "done"}
    home = [sys.executable, "-m", "latentwire.cli", "run", "study.yaml", "--runs", "at_home"]
    subprocess.run(home, cwd=tmp_path, capture_output=True, check=True)
    ours, theirs = (
        sorted(tmp_path.glob(f"{name}/preempted/after/*/metrics.json")) for name in ("runs", "at_home")
    )
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]

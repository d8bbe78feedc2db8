"""A study carried out by several processes: one writes, the others follow, and its numbers are those of one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from latentwire import process_launch
from latentwire.errors import UserError
from latentwire.process_group import LAUNCHER, Group
from latentwire.runs.log import Log
from latentwire.runs.store import runs
from latentwire.studies import commands, loading, references, runner
from latentwire.studies.stages.evaluate import Evaluate
from tests.support.processes import attempt
from tests.support.studies import small_study, written

STAGES = {
    "tuned": {"kind": "finetune", "wire": "text", "steps": 2, "eval_steps": 2, "eval_samples": 2, "samples": 0},
    "read": {"kind": "evaluate", "start_from": "tuned", "arms": {"text": "text", "none": "none"}},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes: dict[str, Any] = {"stages": STAGES, "limit": 4, "tasks": ["one_hop", "choices/home"]}
    left = {"effects": None, "comparisons": [], "gates": []}
    raw = {key: value for key, value in (small_study() | changes | left).items() if value}
    return written(tmp_path_factory.mktemp("study"), raw)


def command(group: Group, study: Path, root: Path, strike: str = "") -> int:
    """`latentwire run` in one of several processes. strike: what happens to the second one in the evaluation."""
    honest = Evaluate.run

    def run(self: Evaluate, work: Any) -> dict[str, Any]:
        if work.group.index == 1 and strike == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if work.group.index == 1 and strike == "bug":
            raise RuntimeError("this process alone has no luck")
        return honest(self, work)

    Evaluate.run = run  # type: ignore[method-assign]
    status = commands.run(str(study), (), (), root, fresh=False, group=group)
    if status:
        raise SystemExit(status)  # as the command ends
    return status


def statuses_of(root: Path) -> dict[str, str]:
    return {run.record.stage: run.status for run in runs(root)}


@pytest.mark.slow
@pytest.mark.parametrize("strike", ["kill", "bug"])
def test_a_process_that_dies_leaves_a_study_that_one_process_finishes_with_equal_numbers(
    tmp_path: Path, study: Path, strike: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    statuses, _ = attempt(2, command, study, root, strike)
    assert all(status != 0 for status in statuses)
    assert statuses_of(root) == {"tuned": "done", "read": "interrupted"}
    said = capfd.readouterr()
    if strike == "bug":
        assert "latentwire: process 1 of 2: RuntimeError: this process alone has no luck" in said.err
    assert said.out.count("starting read") == 1, "the first process alone prints"
    carried = runner.run(loading.load(str(study)), root, Log())
    assert {run.status for run in carried.runs.values()} == {"done"}
    if strike == "bug":  # once is enough
        assert_equal(carried, tmp_path, study)


def assert_equal(carried: Any, tmp_path: Path, study: Path) -> None:
    """Two processes trained, one evaluated what they left; beside one process that did both."""
    alone = runner.run(loading.load(str(study)), tmp_path / "alone", Log())
    ours, theirs = (
        [json.loads(line) for line in (each.runs["read"].folder / "outcomes.jsonl").read_text().splitlines()]
        for each in (carried, alone)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("metrics") == pytest.approx(other.pop("metrics"), rel=1e-4)
        assert one == other


def test_bad_input_is_said_once_and_ends_all_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = written(tmp_path, small_study(tasks=["one_hob"]))
    statuses, _ = attempt(2, refused, broken, tmp_path / "runs")
    assert statuses[0] == 2
    assert statuses[1] != 0
    said = capfd.readouterr()
    assert (said.out + said.err).count("one_hob") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("placed", [{"device_map": "auto"}, {"max_memory": {"cpu": "8GiB"}}])
def test_a_model_spread_over_devices_is_refused_in_several_processes(
    tmp_path: Path, placed: dict[str, Any]
) -> None:
    raw = small_study(stages={"read": {"kind": "evaluate", "arms": {"text": "text"}}})
    raw |= {"loading": {raw["model"]: placed}, "effects": None, "comparisons": [], "gates": []}
    spread = loading.load(str(written(tmp_path, {key: value for key, value in raw.items() if value})))
    references.check_processes(spread, 1)
    key = next(iter(placed))
    with pytest.raises(UserError, match=rf"loading\..*{key}: found one in a command of 2 processes"):
        references.check_processes(spread, 2)


def refused(group: Group, study: Path, root: Path) -> None:
    """The entry point's own ending."""
    from latentwire.cli.entry import ended

    raise SystemExit(ended(lambda: commands.run(str(study), (), (), root, fresh=False, group=group)))


@pytest.mark.parametrize(
    ("gpus", "processes", "said"),
    [
        (2, None, "gpus: found 2, and this machine has no GPU; --processes 2 runs as many processes on the CPU"),
        (2, 2, "processes: found 2 beside gpus: 2, expected one of the two"),
        (0, None, "gpus: found 0, expected 1 or more"),
        (None, -1, "processes: found -1, expected 1 or more"),
    ],
)
def test_what_this_machine_cannot_start_is_refused_in_one_sentence(
    gpus: int | None, processes: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=said):
        process_launch.asked(gpus, processes)


def test_the_processes_that_a_command_starts_start_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(UserError, match="processes: found 2 under torchrun, expected none"):
        process_launch.asked(None, 2)
    monkeypatch.setenv(LAUNCHER, "1")
    assert process_launch.asked(None, 2) is None

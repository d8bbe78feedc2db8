"""Every checkpoint is asked again for the logits that it gave when it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from latentwire.runs import checkpoint_checks
from latentwire.runs.log import Log
from latentwire.runs.store import Run
from latentwire.studies import loading, runner
from tests.support.command_line import Command
from tests.support.studies import model_folder, small_study, written
from tests.support.wire_studies import HERON, A

WIRE = {
    "name": "wired",
    "model": HERON,
    "tasks": ["one_hop"],
    "limit": 4,
    "stages": {"A": {**A, "reader_lora": {"rank": 2}}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A model finetuned with LoRA under a mask, and a wire whose reader learned along with it."""
    folder = tmp_path_factory.mktemp("trained")
    small: dict[str, Any] = small_study(effects=None, comparisons=[], gates=[])
    small["finetuning"] |= {"steps": 2, "lora": {"rank": 2}, "learning_rate": 0.01}
    found = {}
    for study, stage in ((small, "prefix_ft"), (WIRE, "A")):
        study = {**study, "stages": {stage: study["stages"][stage]}}
        made = loading.load(
            str(written(folder, {key: value for key, value in study.items() if value is not None}))
        )
        found[stage] = runner.run(made, folder / "runs", Log()).runs[stage]
    return found


def problems(run: Run) -> list[str]:
    faults = [fault for name in ("best", "final") for fault in checkpoint_checks.check(run, name)]
    return [f"{fault.kind}: {fault.problem}" for fault in faults]


@pytest.mark.slow
def test_checkpoints_give_the_logits_that_they_were_saved_with(
    trained: dict[str, Run], latentwire: Command
) -> None:
    for run in trained.values():
        assert {"probes/best.json", "probes/final.json"} <= run.record.artifacts.keys()
    status, out, _ = latentwire("runs", "verify", "--checkpoints", "--runs", trained["A"].folder.parents[2])
    assert (status, out) == (0, "2 runs checked, 0 with something wrong\n")


def scaled(path: Path, factor: float) -> bytes:
    """Change the numbers of a weight file and return what it was."""
    before = path.read_bytes()
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name] = tensors[name] * factor
    save_file(tensors, path, {"format": "pt"})
    return before


@pytest.mark.parametrize(("stage", "name"), [("prefix_ft", "model.safetensors"), ("A", "wire.safetensors")])
def test_a_checkpoint_that_loads_as_something_else_is_found(
    trained: dict[str, Run], stage: str, name: str
) -> None:
    run = trained[stage]
    path = run.folder / "checkpoints" / "best" / name
    before = scaled(path, 1.5)
    try:
        (problem,) = problems(run)
    finally:
        path.write_bytes(before)
    assert problem.startswith("checkpoint: ")
    assert "logits that differ from those at saving by" in problem


def test_a_checkpoint_that_does_not_load_is_found(trained: dict[str, Run]) -> None:
    path = trained["prefix_ft"].folder / "checkpoints" / "final" / "model.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-100])
    try:
        (problem,) = problems(trained["prefix_ft"])
    finally:
        path.write_bytes(before)
    assert problem.startswith("checkpoint: does not load or run (")


def test_a_checkpoint_of_an_older_version_is_a_note(trained: dict[str, Run]) -> None:
    path = trained["prefix_ft"].folder / "probes" / "best.json"
    text = path.read_text()
    path.unlink()
    try:
        (problem,) = problems(trained["prefix_ft"])
    finally:
        path.write_text(text)
    assert problem.startswith("unknown: no logits were kept")


def test_the_model_that_a_wire_reads_with_must_be_there(trained: dict[str, Run], tmp_path: Path) -> None:
    folder = model_folder("llama", 2048)
    folder.rename(tmp_path / "away")
    try:
        found = problems(trained["A"])
    finally:
        (tmp_path / "away").rename(folder)
    assert len(found) == 2
    assert all("does not load or run" in problem for problem in found)

"""Trackers are told what is on disk, under an id that a resumed run keeps, and no result depends on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from latentwire.studies.runner import Carried
from latentwire.training import trackers
from latentwire.training.finetuning import finetune as finetuning
from tests.support.studies import model_folder, written

RECORDING = "tests.support.recording_tracker:RecordingTracker"
FAILING = "tests.support.recording_tracker:FailingTracker"


def tracked(folder: Path, *names: str, **changes: Any) -> Carried:
    """A study of one finetuning and one evaluation, carried out with trackers."""
    study = {
        "name": "tracked",
        "model": str(model_folder()),
        "tasks": ["one_hop"],
        "limit": 2,
        "trackers": list(names),
        "stages": {
            "ft": {
                "kind": "finetune",
                "data": {"kind": "world", "tasks": ["one_hop"]},
                "steps": 4,
                "rows": 1,
                "row_tokens": 512,
                "eval_samples": 2,
                "eval_steps": 2,
                "log_steps": 1,
                "samples": 1,
            },
            "read": {"kind": "evaluate", "start_from": "ft", "arms": {"text": "text"}},
        },
    }
    return runner.run(loading.load(str(written(folder, study | changes))), folder / "runs", Log())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def carried(place: Path) -> Carried:
    return tracked(place, RECORDING)


def test_a_tracker_is_told_what_the_files_hold(carried: Carried) -> None:
    folder = carried.runs["ft"].folder
    told = lines(folder / "trackers" / "told.jsonl")
    assert told[0] == {"what": "start", "project": "tracked", "id": f"ft-{folder.name}"}
    assert told[1]["values"] == carried.runs["ft"].record.configuration
    assert told[-1] == {"what": "finish"}
    logs = [line for line in told if line["what"] == "log"]
    logged = [(line["step"], line["values"]) for line in logs if "samples" not in line["values"]]
    written_down = [
        (line["step"], dict(trackers._numbers({key: value for key, value in line.items() if key != "step"})))
        for line in lines(folder / "diagnostics.jsonl")
    ]
    assert logged == written_down
    shown = {line["step"]: line["values"]["samples"] for line in logs if "samples" in line["values"]}
    assert {f"step_{step:06d}.jsonl" for step in shown} == {path.name for path in (folder / "samples").iterdir()}
    read = carried.runs["read"].folder
    metrics = json.loads((read / "metrics.json").read_text(encoding="utf-8"))
    (evaluated,) = [line["values"] for line in lines(read / "trackers" / "told.jsonl") if line["what"] == "log"]
    assert evaluated["text/one_hop/exact_match/value"] == metrics["text"]["one_hop"]["exact_match"]["value"]


def resumed(folder: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finetuning that was interrupted in its third step and resumed."""
    finetune = finetuning.finetune

    def interrupted(*args: Any, **options: Any) -> Any:
        def progress(done: int, steps: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        return finetune(*args, **{**options, "progress": progress})

    monkeypatch.setattr(finetuning, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracked(folder, tracker)
    monkeypatch.setattr(finetuning, "finetune", finetune)
    return tracked(folder, tracker).runs["ft"].folder


@pytest.mark.slow
def test_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resumed(tmp_path, RECORDING, monkeypatch)
    told = lines(folder / "trackers" / "told.jsonl")
    assert [line["id"] for line in told if line["what"] == "start"] == [f"ft-{folder.name}"] * 2


@pytest.mark.slow
def test_a_tracker_that_fails_is_dropped_and_the_study_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried = tracked(tmp_path, FAILING)
    assert {run.status for run in carried.runs.values()} == {"done"}
    assert "FailingTracker failed (ConnectionError: the network is gone)" in capsys.readouterr().err


def test_trackers_do_not_change_what_a_run_is(carried: Carried, place: Path) -> None:
    assert {name: run.folder for name, run in tracked(place).runs.items()} == {
        name: run.folder for name, run in carried.runs.items()
    }


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tensorbord", r"trackers: found 'tensorbord', expected .*nearest: tensorboard"),
        ("missing.module:Tracker", r"trackers: found 'missing.module:Tracker', .*no module"),
    ],
)
def test_an_unknown_tracker_is_refused_before_any_folder_exists(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tracked(tmp_path, name)
    assert not (tmp_path / "runs").exists()


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"'wandb', which is not installed; run: pip install 'latentwire\[wandb\]'"
    ):
        trackers.check(["wandb"])


@pytest.mark.slow
def test_tensorboard_reads_back_losses_samples_and_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    carried = tracked(tmp_path, "tensorboard")
    folder = carried.runs["ft"].folder
    events = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    events.Reload()
    losses = {line["step"]: line["loss"] for line in lines(folder / "diagnostics.jsonl") if "loss" in line}
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(losses)
    assert events.Tensors("samples/text_summary")
    assert json.loads(events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].strip(b"`\n"))
    assert carried.runs["ft"].changed_artifacts() == []


@pytest.mark.slow
def test_wandb_keeps_the_run_and_its_id_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tracked(tmp_path, "wandb").runs["ft"].folder
    (kept,) = (folder / "trackers" / "wandb").glob(f"offline-run-*-ft-{folder.name}/run-*.wandb")
    assert kept.stat().st_size > 0


@pytest.mark.slow
def test_trackio_goes_on_in_the_same_run_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackio's folder is decided when it is first imported: its own API says what it has kept."""
    trackio = pytest.importorskip("trackio")
    folder = resumed(tmp_path, "trackio", monkeypatch)
    kept = {run.name: run for run in trackio.Api().runs("tracked") if run.name.endswith(folder.name)}
    assert list(kept) == [f"ft-{folder.name}"]
    (run,) = kept.values()
    settings = {key: value for key, value in run.config.items() if not key.startswith("_")}
    assert settings == json.loads((folder / "run.json").read_text(encoding="utf-8"))["configuration"]
    logged = trackio.sqlite_storage.SQLiteStorage.get_logs("tracked", run.name, run_id=run.id)
    losses = {line["step"]: line["loss"] for line in lines(folder / "diagnostics.jsonl") if "loss" in line}
    assert {line["step"]: line["loss"] for line in logged if "loss" in line} == pytest.approx(losses)
    tables = [line["samples"] for line in logged if "samples" in line]
    assert [table["_type"] for table in tables] == ["trackio.table"] * 3

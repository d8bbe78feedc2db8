"""Snapshots come back as they were written, or not at all."""

import json
import shutil

import pytest
import torch

from latentwire.training import checkpoints, loop
from tests.support.killing import killed_after
from tests.training.test_loop import run, weights_of

STEPS = {"steps": 4, "eval_steps": 2, "train_samples": 8}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, **STEPS)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A training that was killed after its third step, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    with killed_after(3):
        run(folder, **STEPS)
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink()], ids=["flipped", "cut", "missing"])
@pytest.mark.parametrize(
    "name",
    ["last/trained.safetensors", "last/optimizer.safetensors", "last/state.json", ".best/trained.safetensors"],
)
def test_a_damaged_snapshot_is_set_aside_and_training_ends_with_the_same_weights(
    tmp_path, whole, killed, damage, name
):
    shutil.copytree(killed, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / name)
    _, said = run(tmp_path / "run", **STEPS)
    (sentence,) = [line for line in said if "set aside" in line]
    assert "last: found" in sentence
    assert (tmp_path / "run" / "checkpoints" / ".damaged-last").is_dir()
    assert not any("resumed" in line for line in said), "there was no snapshot before it: from step 0"
    ours, theirs = weights_of(tmp_path / "run"), weights_of(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_snapshot_before_a_damaged_one_is_used_where_it_was_kept(tmp_path, whole):
    changes = {**STEPS, "save_steps": 1, "keep_snapshots": 2}
    with killed_after(3):
        run(tmp_path / "run", **changes)
    flip(tmp_path / "run" / "checkpoints" / "last" / "trained.safetensors")
    _, said = run(tmp_path / "run", **changes)
    assert any("set aside as .damaged-last" in line for line in said)
    assert any("resumed at step 2" in line for line in said)
    ours, theirs = weights_of(tmp_path / "run"), weights_of(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_snapshots_have_a_cadence_of_their_own(tmp_path, monkeypatch):
    written = []
    honest = checkpoints.save

    def save(folder, model, optimizer, state, **options):
        written.append((folder.name, state["step"]))
        honest(folder, model, optimizer, state, **options)

    monkeypatch.setattr(checkpoints, "save", save)
    run(tmp_path / "run", steps=5, eval_steps=1, save_steps=3)
    assert [step for name, step in written if name == "last"] == [0, 3, 5]


def test_without_snapshots_the_disk_never_holds_an_optimizer_and_a_killed_training_begins_anew(tmp_path, whole):
    changes = {**STEPS, "keep_snapshots": 0}
    with killed_after(3):
        run(tmp_path / "run", **changes)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {".best"}
    assert not list((tmp_path / "run").rglob("optimizer*"))
    _, said = run(tmp_path / "run", **changes)
    assert not any("resumed" in line for line in said)
    ours, theirs = weights_of(tmp_path / "run"), weights_of(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_finished_training_leaves_no_snapshot_to_resume_from(whole):
    left = {path.name for path in (whole / "checkpoints").iterdir()}
    assert left == {"best", "final", "done.json"}


@pytest.mark.slow
def test_a_kill_at_the_end_leaves_enough_to_end_again(tmp_path, monkeypatch, whole):
    for place in ("_trained", "remove"):
        folder = tmp_path / place

        def die(*args, **options):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(*((loop.Training, place) if place == "_trained" else (checkpoints, place)), die)
            with pytest.raises(Killed):
                run(folder, **STEPS)
        run(folder, **STEPS)
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best", "final", "done.json"}
        for name in ("best", "final"):
            ours, theirs = weights_of(folder, name), weights_of(whole, name)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("kept", ["last", ".last-1"])
def test_a_kill_between_two_renames_leaves_a_snapshot_to_find(tmp_path, kept):
    model = torch.nn.Linear(2, 2)
    checkpoints.save(tmp_path / "last", model, None, {"step": 1})
    (tmp_path / "last").rename(tmp_path / kept)
    assert checkpoints.find(tmp_path / "last").state["step"] == 1


def test_a_kill_after_the_first_evaluation_writes_its_line_once(tmp_path, monkeypatch):
    def die(self, *args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_save", die)
        with pytest.raises(Killed):
            run(tmp_path / "run", **STEPS)
    run(tmp_path / "run", **STEPS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_checkpoints_are_exported_in_the_dtype_asked_for_and_load_in_it(tmp_path):
    from safetensors import safe_open

    run(tmp_path / "run", steps=1, export_dtype="bfloat16")
    for name in ("best", "final"):
        with safe_open(tmp_path / "run" / "checkpoints" / name / "model.safetensors", "pt") as file:
            assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118

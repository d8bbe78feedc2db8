"""One changed byte is found wherever it is, and nothing is found where nothing changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from latentwire.runs import store
from latentwire.runs.store import Run, scan
from latentwire.runs.verification import verify_all, verify_run
from tests.support.command_line import Command
from tests.support.run_folders import answers, evaluated, parent, trained

COUNT = 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred runs: one is written by the store, the others are it under other names and contents."""
    root = tmp_path_factory.mktemp("many") / "runs"
    patch = pytest.MonkeyPatch()
    patch.setattr(
        store, "write_atomically", lambda path, text: path.write_text(text, encoding="utf-8")
    )  # no fsync
    for number in range(COUNT):
        if number % 10 == 0:
            trained(root, f"fit{number % 7}", seed=number)
        else:
            evaluated(root, f"stage{number % 7}", answers([float(number % 3 == 0), 1.0]))
    patch.undo()
    return root


def flip(path: Path, at: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= mask
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("number", "name", "at"),
    [
        (3, "outcomes.jsonl", 17),
        (77, "metrics.json", 40),
        (110, "checkpoints/final/model.safetensors", 63),
        (199, "run.json", 200),
        (198, "run.json", -70),  # in the hash itself
        (150, "diagnostics.jsonl", 5),
        (42, "log.txt", 3),
    ],
)
def test_one_flipped_byte_among_200_runs_is_found(
    many: Path, latentwire: Command, number: int, name: str, at: int
) -> None:
    runs, _ = scan(many)
    order = {
        run.record.results["floors" if run.record.kind == "evaluate" else "steps"] is not None for run in runs
    }
    assert order == {True}
    kind = "finetune" if number % 10 == 0 else "evaluate"
    run = [each for each in runs if each.record.kind == kind][number % 20]
    before = (run.folder / name).read_bytes()
    flip(run.folder / name, at)
    try:
        status, out, _ = latentwire("runs", "verify", "--runs", many)
    finally:
        (run.folder / name).write_bytes(before)
    assert status == 1
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert run.folder.name in failed[0]
    assert name in failed[0]
    assert f"{COUNT} runs checked, 1 with something wrong" in out


def test_nothing_is_found_where_nothing_changed(many: Path, latentwire: Command) -> None:
    status, out, _ = latentwire("runs", "verify", "--runs", many)
    assert (status, out) == (0, f"{COUNT} runs checked, 0 with something wrong\n")


def problems(run: Run, root: Path | None = None) -> list[str]:
    return [f"{found.kind} {found.where}" for found in verify_run(Run.read(run.folder), root)]


def test_what_is_gone_or_was_added_is_found(tmp_path: Path) -> None:
    run = evaluated(tmp_path, "a", answers([1.0, 0.0]))
    (run.folder / "notes.txt").write_text("mine")
    assert problems(run) == ["changed notes.txt"]
    (run.folder / "notes.txt").unlink()
    (run.folder / "metrics.json").unlink()
    assert problems(run) == ["changed metrics.json"]


def test_lines_that_a_log_got_after_the_end_do_not_count(tmp_path: Path) -> None:
    run = evaluated(tmp_path, "a", answers([1.0, 0.0]))
    with (run.folder / "log.txt").open("a") as log:
        log.write("later\n")
    assert problems(run) == []
    (run.folder / "log.txt").write_text("other\n")
    assert problems(run) == ["changed log.txt"]


def test_a_run_that_ended_without_all_of_its_parts_is_incomplete(tmp_path: Path) -> None:
    run = evaluated(tmp_path, "a", answers([1.0, 0.0]))
    run.write(configuration={"arms": {"text": "text", "none": "none"}})
    assert problems(run) == ["incomplete metrics.json"]
    fit = trained(tmp_path, "fit", seed=0)
    shutil.rmtree(fit.folder / "checkpoints" / "final")
    with fit.work():
        fit.finish({"steps": 9})
    assert problems(fit) == ["incomplete checkpoints/final", "incomplete diagnostics.jsonl"]


def test_a_parent_that_is_gone_is_a_note_and_another_one_is_a_failure(tmp_path: Path) -> None:
    fit = trained(tmp_path, "fit", seed=0)
    run = evaluated(tmp_path, "a", answers([1.0, 0.0]), parents=parent(fit))
    assert problems(run, tmp_path) == []
    fit.write(identity="2" * 64)
    assert problems(run, tmp_path) == ["changed parent fit"]
    shutil.rmtree(fit.folder)
    assert problems(run, tmp_path) == ["unknown parent fit"]
    assert not any(found.fails for found in verify_run(run, tmp_path))


def test_a_record_of_an_older_version_is_a_note(tmp_path: Path) -> None:
    run = evaluated(tmp_path, "a", answers([1.0, 0.0]))
    path = run.folder / "run.json"
    lines = [
        line for line in path.read_text().splitlines() if "record_sha256" not in line and "study_file" not in line
    ]
    lines[-2] = lines[-2].rstrip(",")
    path.write_text("\n".join(lines) + "\n")
    assert problems(run) == ["unknown run.json"]


def test_a_record_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    run = evaluated(tmp_path, "a", answers([1.0, 0.0]))
    (run.folder / "run.json").write_text("{")
    (found,) = verify_all(*scan(tmp_path), tmp_path)
    assert (found.where, found.fails) == ("run.json", True)


def test_a_run_that_is_under_way_or_failed_is_not_incomplete(tmp_path: Path) -> None:
    run = evaluated(tmp_path, "a", answers([1.0, 0.0]))
    with run.work():
        run.fail("RuntimeError: no")
    assert problems(run) == []

"""Claims about the run folder: whole or absent, owned by one process, honest about what happened to it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.runs import provenance, store
from latentwire.runs.identity import file_sha256, identity, model_files, model_folder
from latentwire.runs.store import Record, Run, find, runs


def record(**changes: Any) -> Record:
    parts: dict[str, Any] = {
        "run": "",
        "study": "s",
        "stage": "baseline",
        "kind": "evaluate",
        "identity": "1" * 64,
        "configuration": {"arms": {"text": "text"}},
        "seeds": {},
        "inputs": {},
        "parents": {},
        **provenance.gather(),
    }
    return Record.model_validate({**parts, **changes})


def test_an_identity_is_of_content_and_not_of_order() -> None:
    assert identity({"a": 1, "b": [1, 2]}) == identity({"b": [1, 2], "a": 1})
    assert identity({"a": 1, "b": [1, 2]}) != identity({"a": 1, "b": [2, 1]})


def test_a_run_folder_is_named_by_time_and_appears_with_its_record(tmp_path: Path) -> None:
    run = Run.create(tmp_path, record())
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.folder.name)
    assert run.folder.parent == tmp_path / "s" / "baseline"
    found = json.loads((run.folder / "run.json").read_text())
    assert found["run"] == f"s/baseline/{run.folder.name}"
    for key in ("status", "configuration", "versions", "git", "seeds", "inputs", "parents", "identity", "machine"):
        assert key in found
    assert found["results"] is None
    assert Run.read(run.folder).record == run.record


def test_a_folder_that_was_not_finished_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "s" / "baseline" / ".20260101-000000-abcd").mkdir(parents=True)
    (tmp_path / "s" / "baseline" / ".20260101-000000-abcd" / "run.json").write_text("{}")
    (tmp_path / "s" / "baseline" / "20260101-000000-abcd").mkdir()
    assert runs(tmp_path) == []


def test_work_ends_done_failed_or_interrupted(tmp_path: Path) -> None:
    run = Run.create(tmp_path, record())
    with run.work():
        assert Run.read(run.folder).status == "running"
        (run.folder / "outcomes.jsonl").write_text("x\n")
        run.finish({"seconds": 1})
    again = Run.read(run.folder)
    assert (again.status, again.record.results) == ("done", {"seconds": 1})
    assert again.record.artifacts == {"outcomes.jsonl": file_sha256(run.folder / "outcomes.jsonl")}
    assert again.seconds is not None

    with pytest.raises(KeyboardInterrupt), run.work():
        raise KeyboardInterrupt
    assert Run.read(run.folder).status == "interrupted"
    with run.work():
        run.fail("RuntimeError: no")
    assert Run.read(run.folder).status == "failed"
    assert len(Run.read(run.folder).record.times) == 3


def test_two_processes_never_work_in_one_folder(tmp_path: Path) -> None:
    run = Run.create(tmp_path, record())
    with run.work(), pytest.raises(UserError, match=f"worked on by process {os.getpid()}"), run.work():
        pass


WORK = """
import sys
from pathlib import Path
from latentwire.runs.store import Run
run = Run.read(Path(sys.argv[1]))
with run.work():
    print("working", flush=True)
    while True:
        run.write(error="x" * 20000)
"""


def test_a_kill_at_any_instant_leaves_a_whole_record_and_an_interrupted_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path, record())
    for wait in (0.0, 0.013, 0.031):
        worker = subprocess.Popen([sys.executable, "-c", WORK, str(run.folder)], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"working\n"
        assert Run.read(run.folder).status == "running"
        time.sleep(wait)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        found = Run.read(run.folder)
        assert found.record.status == "running"
        assert found.status == "interrupted"


def test_a_changed_or_missing_artifact_is_noticed(tmp_path: Path) -> None:
    run = Run.create(tmp_path, record())
    best, last = run.folder / "checkpoints" / "best" / "w", run.folder / "checkpoints" / "last" / "w"
    for path in (best, last):
        path.parent.mkdir(parents=True)
        path.write_text("weights")
    with run.work():
        run.finish({})
    assert list(run.record.artifacts) == ["checkpoints/best/w"]  # last is nobody's result
    assert run.changed_artifacts("checkpoints/best") == []
    best.write_text("others")
    assert run.changed_artifacts("checkpoints/best") == ["checkpoints/best/w"]
    best.unlink()
    assert run.changed_artifacts("checkpoints/best") == ["checkpoints/best/w"]


def test_runs_are_found_by_folder_by_stage_and_by_name(tmp_path: Path) -> None:
    first, second = Run.create(tmp_path, record()), Run.create(tmp_path, record())
    newest = max(first.folder, second.folder)
    assert find(tmp_path, "s/baseline").folder == newest
    assert find(tmp_path, str(first.folder)).folder == first.folder
    assert find(tmp_path, f"s/baseline/{second.folder.name}").folder == second.folder
    with pytest.raises(UserError, match=r"found no run 's/basline'.*there are s/baseline"):
        find(tmp_path, "s/basline")


def test_a_record_that_is_none_is_told_in_one_sentence(tmp_path: Path) -> None:
    run = Run.create(tmp_path, record())
    (run.folder / "run.json").write_text('{"run": 1}')
    with pytest.raises(UserError, match=r"run\.json: run: "):
        Run.read(run.folder)


def test_the_hash_of_weights_is_of_what_loading_reads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="safetensors"):
        model_files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    (tmp_path / "consolidated.safetensors").write_bytes(b"the same in another layout")
    for name in ("README.md", "README.json", "card.json", "card.md", "recipe.json"):
        (tmp_path / name).write_text("of no account")
    assert list(model_files(tmp_path)) == ["config.json", "model.safetensors"]


def test_a_blob_of_the_hubs_cache_is_not_read_again(tmp_path: Path) -> None:
    blob = tmp_path / ("a" * 64)
    blob.write_bytes(b"gigabytes")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert file_sha256(tmp_path / "model.safetensors") == "a" * 64


def test_a_link_to_a_name_that_is_no_hash_is_read(tmp_path: Path) -> None:
    (tmp_path / ("z" * 64)).write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / ("z" * 64))
    assert file_sha256(tmp_path / "model.safetensors") == hashlib.sha256(b"weights").hexdigest()


def test_a_gguf_file_is_known_by_its_own_content(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF one")
    assert model_folder(str(path)) == path
    before = model_files(path)
    path.write_bytes(b"GGUF two, longer")
    assert list(before) == ["small.gguf"]
    assert model_files(path) != before


def test_runs_that_begin_within_one_second_have_different_folders(tmp_path, monkeypatch):
    """Of 200 in a second, one pair in three times draws the same word; the second one failed then."""
    words = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(store.secrets, "token_hex", lambda _: next(words))
    monkeypatch.setattr(store, "datetime", Stopped)
    first, second = (Run.create(tmp_path, record()) for _ in range(2))
    assert (first.folder.name[-4:], second.folder.name[-4:]) == ("aaaa", "bbbb")


class Stopped(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return datetime(2026, 1, 1, tzinfo=tz)

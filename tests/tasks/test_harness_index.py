"""lm-eval's index of tasks, kept on disk, is the one that lm-eval makes, whatever became of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from lm_eval.tasks import manager as lm_eval_manager
from lm_eval.tasks._index import TaskIndex

from latentwire.tasks import harness_index

TASK = "dataset_path: json\noutput_type: multiple_choice\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of definitions of every kind, and an empty folder for what is kept."""
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    (folder / "deep").mkdir(parents=True)
    (folder / "base.yaml").write_text(f"tag: both\n{TASK}")
    (folder / "deep" / "one.yaml").write_text("include: ../base.yaml\ntask: one\n")
    (folder / "two.yaml").write_text(f"task: two\ntag: [both, alone]\n{TASK}")
    (folder / "group.yaml").write_text("group: all\ntask: [one, two]\n")
    (folder / "code.yaml").write_text("task: coded\nclass: !function code.Coded\n")
    (folder / "wrong.yaml").write_text("task: [\n")
    return folder


def seen(index: dict[str, Any]) -> dict[str, Any]:
    return {name: (entry.name, entry.kind, entry.yaml_path, entry.tags) for name, entry in index.items()}


def unread(*_: Any) -> None:
    raise AssertionError("the files are read again")


def test_what_is_kept_is_the_index_of_lm_eval_and_is_not_made_twice(root, monkeypatch):
    expected = seen(TaskIndex.build([root]))
    assert set(expected) == {"one", "two", "all", "coded", "both", "alone"}
    assert seen(harness_index._kept(root)) == expected
    with monkeypatch.context() as patch:
        patch.setattr(TaskIndex, "build", unread)
        assert seen(harness_index._kept(root)) == expected


@pytest.mark.parametrize("change", ["another task", "a new file", "a file less"])
def test_the_index_is_made_anew_once_a_definition_changes(root, change):
    harness_index._kept(root)
    if change == "another task":
        (root / "two.yaml").write_text(f"task: three\n{TASK}")
    elif change == "a new file":
        (root / "three.yaml").write_text(f"task: three\n{TASK}")
    else:
        (root / "two.yaml").unlink()
    assert seen(harness_index._kept(root)) == seen(TaskIndex.build([root]))


@pytest.mark.parametrize("damage", ["", "[]", '{"state": 1}', "cut"])
def test_a_damaged_file_costs_time_and_nothing_else(root, damage, tmp_path):
    expected = seen(harness_index._kept(root))
    file = tmp_path / "cache" / "lm_eval_tasks.json"
    file.write_text(file.read_text()[:-20] if damage == "cut" else damage)
    assert seen(harness_index._kept(root)) == expected


def test_without_a_place_to_keep_it_the_index_is_made(root, tmp_path):
    (tmp_path / "cache").write_text("a file, and no folder")
    assert seen(harness_index._kept(root)) == seen(TaskIndex.build([root]))


def test_tasks_of_ones_own_go_before_those_of_lm_eval(root, tmp_path, monkeypatch):
    monkeypatch.setattr(lm_eval_manager, "__file__", str(root / "manager.py"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "two.yaml").write_text(f"task: two\n{TASK}")
    (mine / "own.yaml").write_text(f"task: own\n{TASK}")
    for _ in range(2):  # made, and kept
        made = harness_index.manager(mine)
        assert set(made.all_subtasks) == {"one", "two", "coded", "own"}
        assert (made.all_groups, made.all_tags) == (["all"], ["alone", "both"])
        assert made.task_index["two"].yaml_path == mine / "two.yaml"
        assert made.task_index["one"].yaml_path == root / "deep" / "one.yaml"
    assert lm_eval_manager.TaskIndex is TaskIndex

"""Names stand for tasks: each once, in order, and a wrong one is answered with the nearest right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.tasks import FILE_KINDS, GROUPS, TIERS, resolve
from latentwire.tasks.world import world_tasks

WORLD = list(world_tasks())


def names(*asked, data=None) -> list[str]:
    return [task.name for task in resolve(asked, data)]


@pytest.fixture
def folder(tmp_path) -> Path:
    paragraph = {"context": "Ann.", "qas": [{"id": "1", "question": "Who?", "answers": [{"text": "Ann"}]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (tmp_path / "mine.jsonl").write_text('{"context": "Ann.", "question": "Who?", "answers": ["Ann"]}\n')
    return tmp_path


def test_groups_stand_for_all_their_tasks_and_only_for_them():
    assert names("tiers") == list(TIERS)
    assert names("choices") == [name for name in WORLD if name.startswith("choices/")]
    assert names("shifted") == [name for name in WORLD if name.startswith("shifted/")]
    assert sorted(names("world", "shifted")) == sorted(WORLD)
    assert not set(names("world")) & set(names("shifted"))
    assert all(names(group) for group in GROUPS)


def test_no_name_means_two_things():
    assert len({*WORLD, *GROUPS, *FILE_KINDS}) == len(WORLD) + len(GROUPS) + len(FILE_KINDS)


def test_every_task_comes_once_where_it_is_first_named():
    assert names("two_hop", "tiers", "two_hop") == ["two_hop", "one_hop", "reverse", "later"]


def test_files_are_tasks_named_after_their_kind(folder):
    found = resolve(["jsonl", "one_hop", "squad"], folder)  # a folder with one file of each kind
    assert [task.name for task in found] == ["jsonl", "one_hop", "squad"]
    assert [example.answers for task in (found[0], found[2]) for example in task.examples()] == [("Ann",)] * 2
    assert names("squad", data=folder / "squad.json") == ["squad"]


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("onehop", "one_hop"), ("choises", "choices"), ("sqad", "squad"), ("shifted/one_hope", "shifted/one_hop")],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked, nearest):
    with pytest.raises(UserError, match=f"found '{asked}' .nearest: {nearest}"):
        resolve([asked], None)


def test_data_that_is_missing_unused_or_ambiguous_is_refused(folder):
    with pytest.raises(UserError, match=r"data: expected a \.json file for the task 'squad', found none"):
        resolve(["squad"], None)
    with pytest.raises(UserError, match="data: expected a task that reads it"):
        resolve(["one_hop"], folder)
    (folder / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"exactly one \.json file in .*, found 2: other\.json, squad\.json"):
        resolve(["squad"], folder)
    (folder / "mine.jsonl").unlink()
    with pytest.raises(UserError, match=r"exactly one \.jsonl file in .*, found 0"):
        resolve(["jsonl"], folder)


def test_no_name_at_all_is_refused():
    with pytest.raises(UserError, match="task: expected at least one of"):
        resolve([], None)

"""Rows from files and from the hub, for finetunings and for wires alike."""

import json
import shutil
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.training.data.row_data import FileData, HubData
from latentwire.training.data.text import TextData
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.wire.wire_training_config import WireTraining
from tests.support.shared_data import shared

QUESTIONS = [
    {"id": f"{p}/{q}", "context": f"Passage {p}.", "question": f"What {q}?", "answers": {"text": [f"a{q}"]}}
    for p in range(60)
    for q in range(3)
]


def written(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path):
    return written(tmp_path / "questions.jsonl", QUESTIONS)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache of `datasets` that holds the first rows of `squad`, under both of its splits."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hub")
    (folder / "source").mkdir()
    for split, rows in (("train", QUESTIONS), ("validation", QUESTIONS[:6])):
        written(folder / "source" / f"{split}.jsonl", rows)
    made = datasets.load_dataset(str(folder / "source"), split="train", cache_dir=str(folder / "made"))
    made = Path(made.cache_files[0]["filename"]).parent
    place = folder / "cache" / "rajpurkar___squad" / "plain_text" / "0.0.0" / ("a" * 40)
    shutil.copytree(made, place)
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps({**info, "config_name": "plain_text"}))
    for file in place.glob("*.arrow"):
        file.rename(place / file.name.replace("source-", "squad-"))
    return folder


@pytest.fixture
def cached(hub, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return hub


def test_a_wire_asks_all_questions_of_a_passage_and_holds_whole_passages_out(questions):
    data = FileData(kind="file", path=questions)
    train, held_out = (list(data.contexts(split)) for split in ("train", "validation"))
    assert {len(each.examples) for each in (*train, *held_out)} == {3}
    assert len(train) + len(held_out) == 60
    assert len(held_out) > 0
    assert not {each.examples[0].context for each in train} & {each.examples[0].context for each in held_out}


def test_a_finetuning_holds_whole_passages_out(questions):
    data = FileData(kind="file", path=questions)
    train, held_out = (list(data.sources(split, None, 10)) for split in ("train", "validation"))
    assert len(held_out) == 12
    assert not {each.group for each in train} & {each.group for each in held_out}


def test_validation_rows_of_their_own_leave_all_others_to_training(questions, tmp_path):
    other = written(tmp_path / "other.jsonl", [{**row, "context": "Another."} for row in QUESTIONS[:2]])
    data = FileData(kind="file", path=questions, validation=other)
    assert len(list(data.sources("train", None, 500))) == len(QUESTIONS)
    assert [each.context for each in data.sources("validation", None, 500)] == ["Another."] * 2
    assert len(list(data.contexts("train"))) == 60
    assert set(data.files()) == {"", "validation"}


def test_a_short_name_is_read_from_the_cache_of_the_hub(cached):
    data = HubData(kind="hub", name="squad")
    assert len(list(data.sources("train", None, 6))) == len(QUESTIONS) - 6
    assert data.records("train").items[0].answers == ("a0",)
    held = HubData(kind="hub", name="squad", validation_split="validation")
    assert len(list(held.sources("validation", None, 6))) == 6
    assert len(list(held.contexts("train"))) == 60


def test_what_the_hub_gave_is_part_of_a_runs_identity(cached, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    written(folder / "train.jsonl", QUESTIONS)
    before = HubData(kind="hub", name=str(folder)).identity({})
    assert HubData(kind="hub", name=str(folder), max_unusable=0.2).identity({}) == before
    other = tmp_path / "elsewhere" / "set"
    other.mkdir(parents=True)
    written(other / "train.jsonl", [{**QUESTIONS[0], "question": "What else?"}, *QUESTIONS[1:]])
    assert HubData(kind="hub", name=str(other)).identity({})["rows"] != before["rows"]
    assert HubData(kind="hub", name="squad").identity({})["rows"] == before["rows"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"name": "nobody/nothing"}, "nobody/nothing train cannot be loaded"),
        ({"name": "squad", "config": "other"}, "rajpurkar/squad other train cannot be loaded"),
        ({"name": "squad", "split": "tset"}, "tset"),
        ({"name": "squad", "fields": {"answers": "answer"}}, "nearest: answers"),
    ],
)
def test_a_dataset_that_is_not_there_is_refused_in_one_sentence(cached, options, part):
    with pytest.raises(UserError, match=part) as error:
        list(HubData(kind="hub", **options).sources("train", None, 1))
    assert "\n" not in str(error.value)


def test_skipped_rows_are_remarked_and_a_wire_refuses_conversations(tmp_path):
    rows = [*QUESTIONS[:30], {"context": "c", "question": "q", "answers": [""]}]
    (remark,) = FileData(kind="file", path=written(tmp_path / "some.jsonl", rows)).remarks()
    assert "1 of 31 rows are skipped: 1 with an empty answers; the first is" in remark
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    chat = FileData(kind="file", path=written(tmp_path / "chat.jsonl", [{"messages": turns}]))
    with pytest.raises(UserError, match="holds conversations, expected rows with context"):
        list(chat.contexts("train"))


def test_the_yaml_of_a_finetuning_and_of_a_wire_takes_rows(questions):
    file = {"kind": "file", "path": str(questions), "fields": {"group": "context"}}
    hub = {"kind": "hub", "name": "squad", "config": "plain_text", "revision": "main", "split": "train[:10]"}
    for data in (file, hub):
        assert Finetuning.model_validate({"steps": 1, "data": data}).data.kind == data["kind"]
        assert WireTraining.model_validate({"steps": 1, "data": data}).data.kind == data["kind"]
    text = {"kind": "text", "path": "a.txt", "name": "b"}
    with pytest.raises(ValueError, match="found both or neither of path and name"):
        WireTraining.model_validate({"steps": 1, "data": text})


def test_text_is_read_from_tables_and_from_lines(tmp_path):
    texts = [" ".join(f"w{n}-{m}" for m in range(9)) for n in range(4)]
    lines = tmp_path / "a.txt"
    lines.write_text("\n".join(texts))
    table = written(tmp_path / "a.jsonl", [{"body": text} for text in texts])
    sizes = {"kind": "text", "context": 4, "continuation": 3}
    found = [
        [each.examples[0] for each in TextData(**sizes, **options).contexts("train")]
        for options in ({"path": lines}, {"path": table, "fields": {"text": "body"}})
    ]
    assert found[0] == found[1]
    assert all(example.context and example.answers[0] for example in found[0])
    with pytest.raises(UserError, match=r'line 1: found the columns body, expected a text as "text"'):
        list(TextData(**sizes, path=table).contexts("train"))


@pytest.mark.slow
def test_the_shared_files_are_read_as_they_are():
    squad = FileData(kind="file", path=shared("squad_train.jsonl.xz"), validation=shared("squad_val.jsonl.xz"))
    contexts = list(squad.contexts("train"))
    assert (len(contexts), sum(len(each.examples) for each in contexts)) == (17_831, 82_329)
    assert sum(len(each.examples) for each in squad.contexts("validation")) == 4_846
    sft = FileData(kind="file", path=shared("sft.jsonl.xz"))
    assert len(list(sft.sources("train", None, 500))) == 7_005
    prose = TextData(kind="text", path=shared("prose.jsonl.xz"))
    assert len(list(prose.contexts("train"))) > 5_000

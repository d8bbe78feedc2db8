"""Passages of a file are tokenized once; whatever would change them makes them anew."""

import json

import pytest

from latentwire.lm.prompt_format import PromptFormat
from latentwire.training.data.row_data import FileData
from latentwire.training.wire import passage_cache
from latentwire.training.wire import passages as wire_passages
from latentwire.training.wire.passages import identity, passages
from latentwire.wires.latent.latent_config import LatentConfig
from tests.support.models import tiny_lm, tiny_tokenizer

ROWS = [
    {"context": f"Ada has {p} apples; ü.", "question": f"How many {q}?", "answers": [str(p)], "group": f"g{p}"}
    for p in range(40)
    for q in range(2)
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(passage_cache, "FEWEST", 10)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return FileData(kind="file", path=path)


@pytest.fixture
def calls(monkeypatch):
    made = []
    honest = wire_passages.tokenize
    monkeypatch.setattr(wire_passages, "tokenize", lambda *a: (made.append(a), honest(*a))[1])
    return made


@pytest.mark.parametrize("wire", [LatentConfig(), LatentConfig(carry="prompt", layout="only")])
def test_the_second_time_nothing_is_tokenized_and_the_passages_are_equal(data, calls, wire):
    readers = {"one": tiny_lm(), "other": tiny_lm()}
    readers["other"].tokenizer = tiny_tokenizer(bos=True)
    first = passages(data, readers, "train", 999, wire)
    count = len(calls)
    assert count
    assert passages(data, readers, "train", 999, wire) == first
    assert passages(data, readers, "train", 5, wire) == first[:5]
    assert len(calls) == count


def test_what_changes_the_passages_makes_them_anew(data, calls, tmp_path):
    lm = tiny_lm()

    def made():
        before = len(calls)
        passages(data, {"a": lm}, "train", 999)
        return len(calls) > before

    assert made()
    assert not made()
    lm.format = PromptFormat(anchor="Well:")
    assert made()
    lm.tokenizer = tiny_tokenizer(bos=True)
    assert made()
    data.path.write_text(data.path.read_text().replace("apples", "pears"))
    assert made()
    assert not made()


def test_a_part_of_the_passages_does_not_stand_for_more_of_them(data, calls):
    lm = tiny_lm()
    some = passages(data, {"a": lm}, "train", 12)
    before = len(calls)
    more = passages(data, {"a": lm}, "train", 30)
    assert len(calls) > before
    assert more[:12] == some
    assert len(more) == 30


def test_a_damaged_file_is_made_anew(data, calls):
    lm = tiny_lm()
    first = passages(data, {"a": lm}, "train", 999)
    (file,) = passage_cache.folder().glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert passages(data, {"a": lm}, "train", 999) == first
    assert passages(data, {"a": lm}, "train", 999) == first
    assert len(calls) == 4  # twice, each with a last call that finds no more


def test_remarks_on_the_data_are_made_each_time(data):
    row = {"context": "c", "question": "q", "answers": [""]}
    with data.path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    for _ in range(2):
        said = []
        passages(data, {"a": tiny_lm()}, "train", 999, log=said.append)
        assert ["1 of 81 rows are skipped" in line for line in said] == [True]


def test_the_digest_of_data_follows_file_tokenizer_and_format(data):
    lm = tiny_lm()
    digests = [identity(data, {"a": lm})]
    lm.format = PromptFormat(anchor="Well:")
    digests.append(identity(data, {"a": lm}))
    lm.tokenizer = tiny_tokenizer(bos=True)
    digests.append(identity(data, {"a": lm}))
    data.path.write_text(data.path.read_text() + "\n")
    digests.append(identity(data, {"a": lm}))
    assert len(set(digests)) == 4
    assert identity(data, {"a": lm}) == digests[-1]


def test_several_processes_make_the_same_passages_in_the_same_order(data, monkeypatch):
    readers = {"one": tiny_lm(), "other": tiny_lm()}
    readers["other"].tokenizer = tiny_tokenizer(bos=True)
    alone = passages(data, readers, "train", 999)
    monkeypatch.setenv("LATENTWIRE_CACHE", str(data.path.parent / "another"))
    monkeypatch.setattr(wire_passages, "AT_ONCE", 10)
    monkeypatch.setattr(wire_passages, "PER_JOB", 7)
    assert passages(data, readers, "train", 999) == alone
    assert passages(data, readers, "train", 25) == alone[:25]  # from what the processes have left in the cache

"""Several files as one source of training documents: instructions and questions about passages."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from latentwire.lm.prompts import Example
from latentwire.training.finetuning.finetune import finetune
from latentwire.training.finetuning.finetuning_config import Finetuning
from tests.support.models import tiny_lm

QUESTIONS = [
    {"id": f"{p}/{q}", "context": f"Passage {p}.", "question": f"What {q}?", "answers": [f"a{q}"]}
    for p in range(30)
    for q in range(3)
]
TALKS = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}."}]}
    for n in range(20)
]


def written(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def parts(tmp_path):
    questions = {"kind": "file", "path": written(tmp_path / "questions.jsonl", QUESTIONS)}
    return [{"kind": "file", "path": written(tmp_path / "talks.jsonl", TALKS)}, questions]


def mixed(parts, **changes):
    settings = {"steps": 2, "rows": 2, "row_tokens": 64, "eval_samples": 6, "eval_steps": 1, "samples": 1}
    return Finetuning(data={"kind": "mixed", "parts": parts}, **(settings | changes))


def test_the_parts_take_turns_until_one_has_no_more(parts):
    data = mixed(parts).data
    taken = list(data.sources("train", 20, 6))
    assert [isinstance(source, Example) for source in taken] == [False, True] * 10
    every = list(data.sources("train", None, 6))
    assert len(every) == (20 - 3) + (90 - 3)
    assert all(isinstance(source, Example) for source in every[2 * 17 :])
    assert every[:20] == taken


def test_a_few_documents_are_of_all_passages_and_not_of_the_first_ones(parts):
    taken = [source for source in mixed(parts).data.sources("train", 30, 6) if isinstance(source, Example)]
    assert len(taken) == 15
    assert max(int(source.id.partition("/")[0]) for source in taken) > 15


def test_held_out_documents_are_equal_parts_and_share_no_passage_with_the_others(parts):
    data = mixed(parts).data
    held_out = [source for source in data.sources("validation", 6, 6) if isinstance(source, Example)]
    train = [source for source in data.sources("train", None, 6) if isinstance(source, Example)]
    assert len(held_out) == 3
    assert not {source.group for source in held_out} & {source.group for source in train}


def test_validation_rows_of_their_own_are_taken_where_a_part_has_them(parts, tmp_path):
    other = written(tmp_path / "other.jsonl", [{**row, "id": f"v{row['id']}"} for row in QUESTIONS[:9]])
    data = mixed([parts[0], {**parts[1], "validation": other}]).data
    held_out = [source for source in data.sources("validation", 6, 6) if isinstance(source, Example)]
    assert {source.id[0] for source in held_out} == {"v"}
    assert set(data.files()) == {"0", "1", "1 validation"}


def test_the_identity_follows_every_file(parts):
    data = mixed(parts).data
    one = data.identity({"0": "a", "1": "b"})
    assert one == ["a", "b"]
    assert data.identity({"0": "a", "1": "c"}) != one


def test_a_mixture_of_one_is_refused(parts):
    with pytest.raises(ValidationError, match="at least 2"):
        mixed(parts[:1])


def test_a_finetuning_reads_both_under_both_masks_alike(parts, tmp_path):
    hashes = set()
    for wire in ("text", "text,mask=prefix"):
        (folder := tmp_path / wire).mkdir()
        trained = finetune(tiny_lm(), mixed(parts, wire=wire), folder, log=lambda line: None)
        assert trained.steps == 2
        hashes.add(trained.train_rows_sha256)
    assert len(hashes) == 1

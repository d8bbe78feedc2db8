"""Tasks from rows: any columns, any format, worked solutions with odd endings, and unusable rows."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.tasks import jsonl, read, resolve
from latentwire.tasks.solutions import solution_number

DATA = Path(os.environ.get("LATENTWIRE_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROWS = [
    {"id": f"q{at}", "context": f"Ann met {who}.", "question": "Whom?", "answers": [who], "group": "g"}
    for at, who in enumerate(("Bob", "Cy", "Di"))
]


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def written(path: Path, rows) -> Path:
    path.write_text(lines(rows), encoding="utf-8")
    return path


def solved(*endings):
    return [
        {"context": "", "question": f"What is {at}?", "answers": [f"It is that.\n{ending}"]}
        for at, ending in enumerate(endings)
    ]


@pytest.mark.parametrize(
    ("ending", "number"),
    [
        ("#### 5 dollars", 5),
        ("#### 50%", 50),
        ("#### 5.", 5),
        ("#### .5", 0.5),
        ("#### $-5", -5),
        ("#### -$5", -5),
    ],
)
def test_a_worked_answer_with_an_odd_ending_is_read_and_the_file_stays_a_solution_task(tmp_path, ending, number):
    assert float(solution_number(ending)) == number
    task = jsonl.task(written(tmp_path / "x.jsonl", solved("#### 1", ending, "#### 3")), "x")
    assert (task.answer, len(task.examples()), task.remark) == ("solution", 3, "")


def test_one_worked_answer_without_a_number_among_many_is_left_out_and_named(tmp_path):
    rows = solved(*(f"#### {at}" for at in range(40)))
    rows[7] = {**rows[7], "id": "seven", "answers": ["It is many.\n#### many"]}
    task = jsonl.task(written(tmp_path / "x.jsonl", rows), "x")
    assert (task.answer, len(task.examples())) == ("solution", 39)
    assert "1 worked solutions are left out: seven" in task.remark
    assert "no number after ####" in task.remark


def test_a_file_with_few_worked_answers_is_a_span_task_that_says_so(tmp_path):
    rows = [*solved("#### 1"), *({**row, "id": f"r{at}"} for at, row in enumerate(ROWS * 3))]
    task = jsonl.task(written(tmp_path / "x.jsonl", rows), "x")
    assert (task.answer, len(task.examples())) == ("span", 10)
    assert "scored as spans and not as worked solutions, for 9 of 10 are none: r0" in task.remark
    assert jsonl.task(written(tmp_path / "y.jsonl", ROWS), "y").remark == ""


def test_unusable_lines_are_skipped_counted_and_named_up_to_one_in_twenty(tmp_path):
    rows = [{**ROWS[0], "id": str(at)} for at in range(40)]
    rows[4] = {**rows[4], "answers": [""]}
    task = jsonl.task(written(tmp_path / "x.jsonl", rows), "x")
    assert len(task.examples()) == 39
    assert "1 of 40 lines are skipped, the first: " in task.remark
    assert "x.jsonl, line 5: field 'answers[0]'" in task.remark
    for at in (5, 6):
        rows[at] = {**rows[at], "answers": [""]}
    with pytest.raises(UserError, match=r"line 5: field .* \(3 of 40 lines cannot be used\)"):
        jsonl.task(written(tmp_path / "x.jsonl", rows), "x")


def test_the_same_rows_make_the_same_task_in_every_format(tmp_path):
    written(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(lines(ROWS).encode()))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode()))
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    with (tmp_path / "e.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(ROWS[0]))
        table.writeheader()
        table.writerows({**row, "answers": row["answers"][0]} for row in ROWS)
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    expected = resolve(["jsonl"], tmp_path / "a.jsonl")[0].examples()
    for path in sorted(tmp_path.iterdir()):
        for kind in ("squad", "file"):
            (task,) = resolve([kind], path)
            assert (task.answer, task.examples()) == ("span", expected), (kind, path.name)


def test_columns_of_any_name_are_mapped(tmp_path):
    rows = [{"ask": "Whom?", "reply": {"text": who}, "passage": f"Ann met {who}."} for who in ("Bob", "Cy")]
    path = written(tmp_path / "x.jsonl", rows)
    (task,) = resolve(["file,question=ask,answers=reply.text,context=passage"], path)
    first = task.examples()[0]
    assert (first.question, first.answers, first.context) == ("Whom?", ("Bob",), "Ann met Bob.")
    fields = {"question": "ask", "answers": "reply.text", "context": "passage"}
    assert read("file", path, "mine", fields).examples() == task.examples()


def test_rows_with_choices_are_a_choice_task(tmp_path):
    rows = [{"question": "Whom?", "choices": ["Bob", "Cy"], "gold": 1, "context": ""}]
    (task,) = resolve(["file"], written(tmp_path / "x.jsonl", rows))
    assert (task.answer, task.examples()[0].gold) == ("choice", 1)


def test_a_dataset_that_the_hubs_library_reads_is_a_task(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "people"
    folder.mkdir()
    asked = [
        {**{key: row[key] for key in ("id", "context", "question")}, "answers": {"text": row["answers"]}}
        for row in ROWS
    ]
    written(folder / "train.jsonl", asked)
    (task,) = resolve([f"hub:{folder},split=train[:2]"], None)
    assert (task.name, [example.answers for example in task.examples()]) == ("people", [("Bob",), ("Cy",)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file,fields=x", "found 'fields=x' in 'file,fields=x', expected KEY=VALUE with one of max_unusable"),
        ("file,split=train", "found 'split=train'"),
        ("file,answers", "found 'answers' in"),
        ("file,max_unusable=2", "max_unusable in .* out of range"),
        ("file,answers=replies", "fields.answers: found 'replies', expected one of"),
        ("hub:nobody/nothing-at-all", "cannot be loaded from the hub"),
        ("squad", "found .*|expected"),
    ],
)
def test_a_wrong_source_is_refused_in_one_sentence(tmp_path, name, message):
    path = written(tmp_path / "x.jsonl", [{"question": "Whom?", "reply": "Bob"}] * 2)
    with pytest.raises(UserError, match=message) as error:
        resolve([name], None if name.startswith("hub") else path)
    assert "\n" not in str(error.value)


def test_conversations_are_no_task(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(UserError, match="found conversations, expected questions"):
        resolve(["file"], written(tmp_path / "x.jsonl", [{"messages": turns}]))


@pytest.mark.skipif(not (DATA / "squad_val.jsonl.xz").exists(), reason="real data is not part of the repository")
def test_squads_validation_rows_are_a_span_task():
    (task,) = resolve(["squad"], DATA / "squad_val.jsonl.xz")
    examples = task.examples()
    assert (task.answer, len(examples), task.remark) == ("span", 4846, "")
    assert len({example.group for example in examples}) == 1015


@pytest.mark.skipif(not (DATA / "gsm8k_test.jsonl").exists(), reason="real data is not part of the repository")
def test_every_worked_answer_of_gsm8k_is_read(tmp_path):
    rows = map(json.loads, (DATA / "gsm8k_test.jsonl").read_text().splitlines())
    mine = [{"context": "", "question": row["question"], "answers": [row["answer"]]} for row in rows]
    task = jsonl.task(written(tmp_path / "gsm.jsonl", mine), "gsm")
    assert (task.answer, len(task.examples()), task.remark) == ("solution", 1319, "")

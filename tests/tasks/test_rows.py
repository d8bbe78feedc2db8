"""One table is the same rows in every format; a damaged file is refused in one sentence."""

import csv
import gzip
import io
import json
import lzma

import pytest

from latentwire.errors import UserError
from latentwire.tasks.rows import read_rows

ROWS = [{"question": "Who, then?\u2028", "answer": 'Ada "the first"'}, {"question": "Wo?", "answer": "Köln"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def table(delimiter):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet():
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(ROWS), out)
    return out.getvalue()


FILES = {
    "rows.jsonl": lambda: f"\ufeff{LINES}\n".encode(),
    "rows.jsonl.gz": lambda: gzip.compress(LINES.encode()),
    "rows.jsonl.xz": lambda: lzma.compress(LINES.encode()),
    "rows.json": lambda: json.dumps(ROWS).encode(),
    "data.json.xz": lambda: lzma.compress(json.dumps({"data": ROWS}).encode()),
    "rows.csv": lambda: table(","),
    "rows.tsv.gz": lambda: gzip.compress(table("\t")),
    "rows.parquet": parquet,
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_the_same_rows_in_every_format(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name]())
    assert [row.fields for row in read_rows(tmp_path / name)] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", None, "expected a readable file"),
        ("a.jsonl.xz", b"no archive", r"expected a \.xz file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], r"expected a \.gz file"),
        ("a.jsonl", b'{"a": 1}\n{oops', "line 2: expected JSON"),
        ("a.jsonl", b"\xff\xfe", "line 1: expected UTF-8"),
        ("a.jsonl", b'["list"]', "expected a JSON object"),
        ("a.json", b'{"rows": 3}', "expected a list of objects"),
        ("a.csv", b"a,b\n1\n", "row 1: expected 2 cells"),
        ("a.csv", b'a,b\n"1,2\n', "expected a table of cells"),
        ("a.parquet", b"PAR1", "expected a Parquet file"),
    ],
)
def test_a_damaged_table_is_refused_in_one_sentence(tmp_path, name, content, part):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=part) as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)

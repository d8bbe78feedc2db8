"""Rows of a user's table: JSON, JSON Lines, CSV, TSV or Parquet, plain or compressed (`.gz`, `.xz`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from latentwire.errors import UserError
from latentwire.tasks.data_files import decode, read_bytes

COMPRESSED = (".gz", ".xz")
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings of tables."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        number: its line in a file of lines, else its place, from 1.
        where: the file and line (or row) it comes from, for messages.
        fields: its values by column.
    """

    number: int
    where: str
    fields: dict[str, Any]


def suffix(path: Path) -> str:
    """The ending that names the format: `.jsonl` for both `x.jsonl` and `x.jsonl.xz`."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of `path`, in the order of the file.

    The ending says what the file is: `.json` (a list of objects, or an object with such a list as `data`), `.csv`
    and `.tsv` (the first line names the columns), `.parquet`; any other file is JSON Lines. All but Parquet may be
    compressed.

    Example:
        >>> [row.fields for row in read_rows(Path("questions.jsonl.xz"))]

    Raises:
        UserError: the file cannot be read, or is damaged; the message names the line.
    """
    kind = suffix(path)
    if kind == ".parquet":
        return _parquet(path)
    if kind == ".json":
        return _json(path)
    if kind in (".csv", ".tsv"):
        return _table(path, "," if kind == ".csv" else "\t")
    return _json_lines(path)


def _json_lines(path: Path) -> Iterator[Row]:
    # Split at b"\n" only: a JSON text may hold Unicode's other line separators.
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        where = f"{path}, line {number}"
        text = decode(line, where)
        if text.strip():
            yield _object(_parse(text, where), number, where)


def _json(path: Path) -> Iterator[Row]:
    content = _parse(decode(read_bytes(path), str(path)), str(path))
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, found {type(content).__name__}.")
    for number, row in enumerate(rows, start=1):
        yield _object(row, number, f"{path}, row {number}")


def _table(path: Path, delimiter: str) -> Iterator[Row]:
    text = decode(read_bytes(path), str(path))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for number, fields in enumerate(reader, start=1):
            where = f"{path}, row {number}"
            if None in fields or None in fields.values():
                raise UserError(f"{where}: expected {len(reader.fieldnames or ())} cells, found another number.")
            yield Row(number, where, dict(fields))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: expected a table of cells, found: {error}.") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet files need pyarrow; pip install 'latentwire[harness]'.") from error
    read_bytes(path)  # says in one sentence why it cannot be read
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: expected a Parquet file, found: {str(error).splitlines()[0]}") from error
    for number, fields in enumerate(rows, start=1):
        yield Row(number, f"{path}, row {number}", fields)


def _parse(text: str, where: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise UserError(f"{where}: expected JSON, found invalid JSON ({error}).") from error


def _object(value: Any, number: int, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {type(value).__name__} {str(value)[:60]!r}, expected a JSON object.")
    return Row(number, where, value)

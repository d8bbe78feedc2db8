"""Finished runs as tables: one row an arm, every number with its interval."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.support.command_line import Command
from tests.support.run_folders import answers, drawn_answers, evaluated, parent, trained


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    fit = trained(root, "fit", seed=7)
    both = [*drawn_answers(0.8, 40, 0), *drawn_answers(0.6, 40, 1, task="two_hop")]
    evaluated(root, "baseline", [*both, *answers([0.0] * 40, "none"), *answers([0.0] * 40, "none", "two_hop")])
    evaluated(root, "after", drawn_answers(0.7, 40, 2, arm="text,mask=prefix"), parents=parent(fit))
    return root


def test_csv_has_a_row_an_arm_with_unrounded_numbers_and_intervals(root: Path, latentwire: Command) -> None:
    status, out, _ = latentwire("runs", "export")
    assert status == 0
    # Runs that began within one second are in the order of their stages' names; these may or may not have.
    rows = sorted(csv.DictReader(io.StringIO(out)), key=lambda row: row["stage"] != "baseline")
    assert [(row["stage"], row["arm"], row["seeds"]) for row in rows] == [
        ("baseline", "text", ""),
        ("baseline", "none", ""),
        ("after", "text,mask=prefix", "7"),
    ]
    (folder,) = (root / "s" / "baseline").iterdir()
    number = json.loads((folder / "metrics.json").read_text())["text"]["one_hop"]["exact_match"]
    found = [float(rows[0][f"one_hop{part}"]) for part in ("", ".low", ".high")]
    assert found == [number["value"], number["low"], number["high"]]
    assert rows[0]["one_hop.n"] == "40"
    assert rows[2]["two_hop"] == ""


def test_markdown_and_latex_are_tables_of_the_same_numbers(
    root: Path, latentwire: Command, tmp_path: Path
) -> None:
    status, out, _ = latentwire("runs", "export", "-o", "table.md", "--stage", "baseline")
    assert (status, out) == (0, "table.md: 2 arms\n")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "| arm | wire | one_hop exact_match | two_hop exact_match | macro primary | n |"
    assert len(lines) == 4
    latentwire("runs", "export", "-o", "table.tex", "--stage", "baseline")
    tex = (tmp_path / "table.tex").read_text()
    assert r"one\_hop exact\_match" in tex
    assert tex.count(r"\\") == 3
    value = lines[2].split(" | ")[2]
    assert value in tex


def test_a_metric_and_tasks_are_chosen(root: Path, latentwire: Command) -> None:
    status, out, _ = latentwire("runs", "export", "s/baseline", "--metric", "f1", "--task", "two_hop")
    assert status == 0
    header, *rows = csv.reader(io.StringIO(out))
    assert [name for name in header if "hop" in name and "." not in name] == ["two_hop"]
    assert {row[-1] for row in rows} == {"f1"}


def test_nothing_to_export_and_an_unknown_format_are_refused(root: Path, latentwire: Command) -> None:
    status, _, err = latentwire("runs", "export", "s/fit")
    assert status == 2
    assert "found no finished evaluation" in err
    status, _, err = latentwire("runs", "export", "--format", "html")
    assert status == 2
    assert "expected one of csv, markdown, latex" in err

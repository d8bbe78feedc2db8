"""Pictures of benchmarks: which points make a line, and what is said where none can be drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from latentwire.bench import plots
from latentwire.errors import UserError


def row(who: str, figure: float | None, **at: Any) -> dict[str, Any]:
    return {"who": who, "figures": {"ms_per_step": figure}, "at": {"billions": 3, "layers": 26, **at}}


ROWS = [
    *(row("ours", 2.0 * batch, batch=batch, prompt=512) for batch in (8, 1, 2)),
    *(row("floor", float(batch), batch=batch, prompt=512) for batch in (1, 2, 8)),
    row("ours", 99.0, batch=4, prompt=64),
    row("ours", 99.0, batch=4, prompt=512, layers=4),
    row("peer", 7.0, batch=1, prompt=512),
    row("peer", None, batch=2, prompt=512),
]


def test_a_line_joins_points_that_differ_in_one_place() -> None:
    found = plots.lines(ROWS, "ms_per_step", "batch", ("billions", "layers", "prompt"))
    assert found == {"ours": ([1, 2, 8], [2, 4, 16]), "floor": ([1, 2, 8], [1, 2, 8])}
    assert plots.lines(ROWS, "ms_per_step", "billions", ("batch", "prompt")) == {}
    assert plots.lines([], "ms_per_step", "batch", ()) == {}


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "decode.json"
    file.write_text(
        json.dumps({"benchmark": "decode", "machine": "m", "shape": "3b", "dtype": "bfloat16", "rows": rows})
    )
    return file


def test_pictures_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = written(tmp_path, ROWS)
    (first,) = plots.draw([file], tmp_path / "a")
    (again,) = plots.draw([file], tmp_path / "b")
    assert first.name == "decode_by_batch.svg"
    assert first.read_bytes() == again.read_bytes()
    assert len(first.read_bytes()) < 60_000
    with pytest.raises(UserError, match="nothing varies"):
        plots.draw([written(tmp_path, ROWS[:1])], tmp_path)


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_matplotlib", lambda: None)
    (tmp_path / "odd.json").write_text("[]")
    for name in ("odd.json", "missing.json"):
        with pytest.raises(UserError, match=f"{name} cannot be read, expected a file that bench --json wrote"):
            plots.draw([tmp_path / name], tmp_path)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="Matplotlib is not installed"):
        plots.draw([written(tmp_path, ROWS)], tmp_path)

"""The decoding and loading benchmarks: every part runs alone, and its rows say what ran on what."""

from __future__ import annotations

import pytest
import torch

from latentwire.bench import decode, decode_timing, load
from latentwire.bench.setup import SHAPES, BenchRow, Setup, Shape

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nano(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    monkeypatch.setitem(SHAPES, "nano", Shape("llama", {**SHAPES["tiny"].config, **small}))
    monkeypatch.setattr(decode, "BATCHES", (1, 2))
    monkeypatch.setattr(decode, "MORE_BATCHES", (3,))
    monkeypatch.setattr(decode, "PROMPTS", (16, 32))
    monkeypatch.setattr(decode_timing, "LONG", 5)


def rows(only: str, sweep: bool = False) -> list[BenchRow]:
    return list(decode.measure(Setup(CPU, "nano", sweep, only)))


@pytest.mark.slow
def test_the_modes_stand_beside_their_floor() -> None:
    found = rows("modes")
    assert {row.who for row in found} >= {"floor", "latentwire, one step at a time"}
    for row in found:
        floor = next(each for each in found if each.who == "floor" and each.at == row.at)
        assert row.figures["times_floor"] == pytest.approx(row.figures["seconds"] / floor.figures["seconds"])


def test_a_sweep_goes_over_rows_and_prompts() -> None:
    found = rows("sweep")
    assert {row.at["batch"] for row in found} == {1, 2, 3, decode.PREFILL_ROWS}
    assert {row.at["prompt"] for row in found} == {16, 32, 512}
    assert len(rows("", sweep=True)) == len(found) + len(rows("modes"))


def test_the_best_way_is_run_on_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "WAYS", {"a": ((1, 2), "all", {}), "b": ((2,), "none", {"odd": 1})})
    by_batch = {batch: [row for row in rows("ways") if row.at["batch"] == batch] for batch in (1, 2)}
    assert [row.who for row in by_batch[1]] == ["floor", "a", "floor", "a"]
    assert [row.at["layers"] for row in by_batch[1]] == [4, 4, 1, 1]
    few, last = by_batch[2][1:3], by_batch[2][-1]
    assert last.who == min(few, key=lambda row: row.figures["seconds"]).who


def test_loading_is_timed_beside_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "REPEATS", 1)
    monkeypatch.setattr(load, "WAYS", {"latentwire": "latentwire"})
    found = list(load.measure(Setup(CPU, "nano", only="warm")))
    assert [row.who for row in found] == ["reading the 1 files", "latentwire"]
    for row in found:
        assert not row.note
        assert row.figures["times_reading"] == pytest.approx(row.figures["seconds"] / found[0].figures["seconds"])
    assert found[1].figures["peak_over_weights"] > 1


def test_a_loading_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "WAYS", {"transformers": "odd"})
    monkeypatch.setattr(load, "CHILD", "latentwire.bench.nothing")
    last = list(load.measure(Setup(CPU, "nano", only="warm")))[-1]
    assert last.figures == {"seconds": None}
    assert "nothing" in last.note

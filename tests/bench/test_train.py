"""The training benchmark compares like with like, and one failure does not hide the other figures."""

from __future__ import annotations

import pytest
import torch

from latentwire.bench import train_costs
from latentwire.bench.packed_documents import Regime
from latentwire.bench.setup import SHAPES, Setup, Shape

SMALL = Regime(rows=2, width=1024, padded=3, alone=1)
CPU = Setup(torch.device("cpu"), "nano")


@pytest.fixture(autouse=True)
def _nano(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    monkeypatch.setitem(SHAPES, "nano", Shape("llama", {**SHAPES["tiny"].config, **small}))
    monkeypatch.setattr(train_costs, "REGIMES", {"cpu": (SMALL,)})


def test_every_way_is_measured_and_ratios_are_those_of_the_speeds() -> None:
    rows = {row.who: row for row in train_costs.measure(CPU)}
    assert rows["ours, flex"].figures == {}
    assert "no backward pass on a CPU" in rows["ours, flex"].note
    speed = {who: row.figures["tokens_per_second"] for who, row in rows.items() if row.figures}
    assert set(speed) == {*train_costs.RATIOS.values(), *rows} - {"ours, flex"}
    for key, peer in train_costs.RATIOS.items():
        assert rows["ours, split"].figures[key] == pytest.approx(speed["ours, split"] / speed[peer])


def test_ours_and_the_ceiling_read_the_same_tokens() -> None:
    rows = {row.who: row for row in train_costs.measure(CPU)}
    tokens = {
        who: row.figures["tokens_per_second"] * row.figures["seconds"] for who, row in rows.items() if row.figures
    }
    assert tokens["ours, split"] == pytest.approx(tokens[train_costs.CEILING])
    assert tokens["ours, split"] == pytest.approx(sum(len(d.ids) for d in SMALL.documents(64, packed=True)))
    assert sum(len(d.ids) for d in SMALL.documents(64, packed=True)) > 0.8 * SMALL.rows * SMALL.width


def test_utilisation_counts_the_head_rows_that_were_executed() -> None:
    bench = train_costs._Bench(CPU, CPU.model(), peers=False)
    assert bench.head == 64 * 16
    assert bench.body == sum(p.numel() for p in bench.model.parameters()) - bench.head, "tied: one matrix"


def test_running_out_of_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_costs, "padded", full)
    rows = {row.who: row for row in train_costs.measure(CPU)}
    assert rows[train_costs.PADDED].note == "out of memory"
    assert rows["ours, split"].figures["over_padded"] is None
    assert rows["ours, split"].figures["over_causal"] is not None

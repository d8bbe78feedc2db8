"""The benchmark of full weights runs whole steps of every configuration, and says which cannot run here."""

from __future__ import annotations

import pytest
import torch

from latentwire.bench import full_weights
from latentwire.bench.packed_documents import Regime
from latentwire.bench.setup import SHAPES, Setup, Shape


def test_every_configuration_is_measured_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    monkeypatch.setitem(SHAPES, "nano", Shape("llama", {**SHAPES["tiny"].config, **small}))
    monkeypatch.setattr(full_weights, "REGIMES", {"cpu": Regime(rows=1, width=1024, padded=3, alone=1)})
    rows = {row.who: row for row in full_weights.measure(Setup(torch.device("cpu"), "nano"))}
    assert set(rows) == set(full_weights.CONFIGURATIONS)
    for name, row in rows.items():
        if "8bit" in name:
            assert row.note.startswith("optimizer: found adamw8bit")
        else:
            assert row.figures["steps_per_second"] == pytest.approx(1 / row.figures["seconds"])

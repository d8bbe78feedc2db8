"""The loss benchmark measures losses that agree."""

from __future__ import annotations

import pytest
import torch

from latentwire.bench import loss
from latentwire.bench.setup import Setup


def test_gradients_agree_with_the_plain_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "TOKENS", {"cpu": 64})
    rows = {row.who: row for row in loss.measure(Setup(torch.device("cpu"), "tiny"))}
    assert {"cross-entropy, plain", "cross-entropy, chunked", "KL, plain", "KL, chunked"} <= set(rows)
    for who, row in rows.items():
        assert row.figures["seconds"] > 0
        for key in ("hidden_error", "head_error"):
            error = row.figures[key]
            assert error is None if "top" in who else error < 1e-5
    assert "seconds_over_plain" not in rows["KL, plain"].figures
    assert rows["KL, chunked"].figures["seconds_over_plain"] == pytest.approx(
        rows["KL, chunked"].figures["seconds"] / rows["KL, plain"].figures["seconds"]
    )

"""What `diagnostics.jsonl` says of a training is about that training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentwire.training.diagnostics import Diagnostics


def test_the_peak_of_memory_leaves_out_the_stages_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anew: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", anew.append)
    Diagnostics(tmp_path, 0)
    assert anew == [0, 1]

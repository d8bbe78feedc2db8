"""Whoever asks a processor for bfloat16 that it computes slowly is told."""

from __future__ import annotations

import pytest
import torch

from latentwire.lm.loading import processor


@pytest.mark.parametrize(
    ("device", "bfloat16", "slowdown", "said"),
    [
        ("cpu", True, 8.2, "8 times as long"),
        ("cpu", True, 0.3, None),
        ("cpu", False, 8.2, None),
        ("cuda", True, 8.2, None),
    ],
)
def test_slow_bfloat16_is_remarked_on(
    device: str, bfloat16: bool, slowdown: float, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "bfloat16_slowdown", lambda: slowdown)
    remark = processor.remark(torch.device(device), bfloat16=bfloat16)
    assert (remark is None) if said is None else said in str(remark)


def test_the_slowdown_is_measured() -> None:
    assert 0.01 < processor.bfloat16_slowdown() < 1000

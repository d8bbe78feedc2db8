"""Whoever asks a processor for bfloat16 that it computes slowly is told."""

from __future__ import annotations

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.loading import processor
from latentwire.studies import loading


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
    logged: list[str] = []
    processor.remark(torch.device(device), logged.append, bfloat16=bfloat16)
    assert not logged if said is None else said in logged[0]


@pytest.mark.parametrize(
    ("accelerator", "slowdown", "dtype", "precision"),
    [(False, 8.2, "float32", "fp32"), (False, 0.3, "bfloat16", "bf16"), (True, 8.2, "bfloat16", "bf16")],
)
def test_the_quickstart_computes_in_what_the_machine_computes_faster(
    accelerator: bool, slowdown: float, dtype: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "bfloat16_slowdown", lambda: slowdown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
    study = loading.load("quickstart")
    assert study.dtype == dtype
    assert {stage.precision for stage in study.stages.values() if stage.kind == "finetune"} == {precision}


@pytest.mark.parametrize(
    ("key", "known"), [("dtype", "'float32', 'bfloat16'"), ("finetuning.precision", "'fp32', 'bf16'")]
)
def test_another_word_for_it_is_answered_with_those_that_there_are(key: str, known: str) -> None:
    with pytest.raises(UserError, match=f"{key}: found 'quick', expected {known} or 'fastest'"):
        loading.load("quickstart", [f"{key}=quick"])


def test_the_slowdown_is_measured() -> None:
    assert 0.01 < processor.bfloat16_slowdown() < 1000

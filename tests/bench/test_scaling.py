"""The scaling benchmark compares N processes with one, and says where one process does not suffice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentwire.bench import scaling, scaling_worker
from latentwire.bench.setup import Setup
from latentwire.process_group import ALONE
from latentwire.training.loop import Training

CPU = Setup(torch.device("cpu"), "tiny")


@pytest.mark.slow
def test_two_processes_are_measured_beside_one() -> None:
    rows = list(scaling.measure(Setup(torch.device("cpu"), "tiny", only="wire")))
    assert [row.at["processes"] for row in rows] == [1, 2]
    alone, both = (row.figures for row in rows)
    assert alone["share_of_linear"] == 1
    assert both["share_of_linear"] == pytest.approx(both["per_second"] / (2 * alone["per_second"]))


def test_a_shape_that_one_process_cannot_hold_is_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(training: Training, count: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "train_steps", full)
    row = scaling_worker.MEASURED["wire"](CPU, ALONE)
    assert (row.figures["per_second"], row.note) == (None, "out of memory")

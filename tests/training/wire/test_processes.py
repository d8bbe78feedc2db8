"""Several processes train a wire as one does, although its steps cannot be divided by their number."""

import json

import pytest
import torch

from latentwire.lm.loading.lora import Lora
from latentwire.training.objectives import AnswerCrossEntropy, Distill, FirstTokens, GrowingTokens
from tests.support.processes import together
from tests.support.wire_training import run, weights_of

CHANGES = {
    "objectives": (
        AnswerCrossEntropy(),
        Distill(),
        FirstTokens(weight=0.1),
        GrowingTokens(low=0.0, high=0.1),
    ),
    "reader_lora": Lora(rank=2),
    "keep_prob": {"start": 0.7},
    "text_steps": {"probability": 0.5, "tail": 0.5, "steps": 1},
    "steps": 4,
    "accumulation": 2,
}


def train(group, folder):
    return run(folder, **CHANGES)[0]


def test_two_and_three_processes_train_as_one(tmp_path):
    """Losses to 1e-5, weights to 1e-4: the parts of a step are padded, and so rounded, otherwise."""
    expected = run(tmp_path / "1", **CHANGES)[0]
    for count in (2, 3):  # three share four passages a step
        for done in together(count, train, tmp_path / str(count)):
            assert done.train_rows_sha256 == expected.train_rows_sha256
            assert done.best_loss == pytest.approx(expected.best_loss, rel=1e-4)
        assert_alike(tmp_path / str(count), tmp_path / "1")


def assert_alike(ours, theirs):
    logged = [_logged(theirs), _logged(ours)]
    assert len(logged[0]) == len(logged[1]) == 4
    for one, two in zip(*logged, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["objectives"] == pytest.approx(one["objectives"], rel=1e-4, abs=1e-5)
        assert two["first_token_accuracy"] == one["first_token_accuracy"]
        assert two["adapting"]["best"] == pytest.approx(one["adapting"]["best"])
    one, two = weights_of(theirs), weights_of(ours)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4)


def _logged(folder):
    return [
        line for line in map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines()) if "loss" in line
    ]

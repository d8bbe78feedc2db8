"""Several processes that share the steps of a bridge's training train as one does."""

import json

import pytest
import torch
from safetensors.torch import load_file

from latentwire.training.objectives import AnswerCrossEntropy, Distill, FlowMatching
from latentwire.wires.latent.ridge import Ridge
from tests.support.bridge_training import train
from tests.support.bridges import TRANSLATORS
from tests.support.processes import together

GUIDED = TRANSLATORS["dit-attention-guided"].model_copy(update={"drop": 0.5})
FLOW = {
    "objectives": (AnswerCrossEntropy(), Distill(tokens=2), FlowMatching(weight=0.5)),
    "wire": {"translator": GUIDED, "width": 24},
    "adapter": "both",
    "keep_prob": {"start": 0.7},
}
# A small step: AdamW turns a gradient of nearly nothing, as after a map that begins at zero, into a whole one.
SOLVED = {"ridge": Ridge(contexts=8), "adapter": "projected", "learning_rate": 1e-3}


def work(group, folder, changes):
    train(folder, **changes)


@pytest.mark.parametrize(("changes", "count"), [(FLOW, 3), (SOLVED, 2)], ids=["flow", "solved"])
def test_several_processes_train_as_one(tmp_path, changes, count):
    """Losses to 1e-5, weights to 1e-4: the parts of a step are padded, and so rounded, otherwise."""
    train(tmp_path / "one", **changes)
    together(count, work, tmp_path / "several", changes)
    one, several = _lines(tmp_path / "one"), _lines(tmp_path / "several")
    assert len(one) == len(several) == 3
    for mine, theirs in zip(one, several, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
        assert theirs["objectives"] == pytest.approx(mine["objectives"], rel=1e-4, abs=1e-5)
    mine, theirs = (
        load_file(tmp_path / name / "checkpoints/final/wire.safetensors") for name in ("one", "several")
    )
    for key, each in mine.items():
        torch.testing.assert_close(theirs[key], each, rtol=0, atol=1e-4)


def _lines(folder):
    found = map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines())
    return [line for line in found if "loss" in line]

"""Two processes that share the steps of a bridge's training train as one does."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from latentwire.training.objectives import AnswerCrossEntropy, Distill, FlowMatching
from latentwire.wires.latent.ridge import Ridge
from tests.support.bridge_training import train
from tests.support.bridges import TRANSLATORS

GUIDED = TRANSLATORS["dit-attention-guided"].model_copy(update={"drop": 0.5})
FLOW = {
    "objectives": (AnswerCrossEntropy(), Distill(tokens=2), FlowMatching(weight=0.5)),
    "wire": {"translator": GUIDED, "width": 24},
    "adapter": "both",
    "keep_prob": {"start": 0.7},
}
# A small step: AdamW turns a gradient of nearly nothing, as after a map that begins at zero, into a whole one.
SOLVED = {"ridge": Ridge(contexts=8), "adapter": "projected", "learning_rate": 1e-3}


def work(rank, port, folder, changes):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    for name, each in changes.items():
        train(folder / name, **each)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Losses to 1e-5, weights to 1e-4: the parts of a step are padded, and so rounded, otherwise."""
    both = {"flow": FLOW, "solved": SOLVED}
    for name, each in both.items():
        train(tmp_path / "one" / name, **each)
    torch.multiprocessing.spawn(work, (_free_port(), tmp_path / "two", both), nprocs=2)
    for name in both:
        one, two = (_lines(tmp_path / count / name) for count in ("one", "two"))
        assert len(one) == len(two) == 3
        for mine, theirs in zip(one, two, strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
            assert theirs["objectives"] == pytest.approx(mine["objectives"], rel=1e-4, abs=1e-5)
        found = (
            load_file(tmp_path / count / name / "checkpoints/final/wire.safetensors") for count in ("one", "two")
        )
        mine, theirs = found
        for key, each in mine.items():
            torch.testing.assert_close(theirs[key], each, rtol=0, atol=1e-4)


def _lines(folder):
    found = map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines())
    return [line for line in found if "loss" in line]


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

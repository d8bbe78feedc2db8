"""Two processes that share a step train as one does."""

import json
import os

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from latentwire.lm.loading.lora import Lora
from latentwire.training.objectives import AnswerCrossEntropy, Distill, FirstTokens, GrowingTokens
from tests.support.wire_training import run

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
}


def train(rank, port, folder):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    run(folder, **CHANGES)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Losses to 1e-5, weights to 1e-4: the parts of a step are padded, and so rounded, otherwise."""
    run(tmp_path / "one", **CHANGES)
    torch.multiprocessing.spawn(train, (_free_port(), tmp_path / "two"), nprocs=2)
    logged = [
        [
            {key: line[key] for key in ("loss", "first_token_accuracy", "objectives")} | {"at": line["adapting"]}
            for line in map(json.loads, (tmp_path / name / "diagnostics.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        for name in ("one", "two")
    ]
    assert len(logged[0]) == len(logged[1]) == 6
    for one, two in zip(*logged, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["objectives"] == pytest.approx(one["objectives"], rel=1e-4, abs=1e-5)
        assert two["first_token_accuracy"] == one["first_token_accuracy"]
        assert two["at"]["best"] == pytest.approx(one["at"]["best"])
    weights = [load_file(tmp_path / n / "checkpoints" / "final" / "wire.safetensors") for n in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, rtol=0, atol=1e-4)


def _free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

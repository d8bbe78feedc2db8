"""SIGTERM to one of two processes that share a training stops both, and the same training goes on from there."""

import json
import os
import signal
import socket

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from latentwire.training import loop
from tests.support.wire_training import run

TERMINATED = 143
SMALL = {"steps": 3, "eval_steps": 3, "passages": 2, "contexts": 4, "samples": 0}


def work(rank, port, folder):
    """A whole training; one that is stopped; and that one again. What each came to is written beside it."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    run(folder / "whole", **SMALL)
    honest = loop.Training._train_step

    def step(self):
        if rank == 1 and self.done == 2:  # only one of them is told, and the snapshot is the other one's to write
            os.kill(os.getpid(), signal.SIGTERM)
        honest(self)

    loop.Training._train_step = step
    status = 0
    try:
        run(folder / "stopped", **SMALL)
    except SystemExit as error:
        status = error.code
    loop.Training._train_step = honest
    torch.distributed.barrier()  # the snapshot is there
    if rank == 0:
        state = json.loads((folder / "stopped" / "checkpoints" / "last" / "state.json").read_text())
        (folder / "step").write_text(str(state["step"]))
    torch.distributed.barrier()
    _, _, said = run(folder / "stopped", **SMALL)
    (folder / f"rank-{rank}.json").write_text(json.dumps({"status": status, "said": said}))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_snapshot_and_the_training_goes_on_to_equal_weights(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, tmp_path), nprocs=2)
    ended = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["status"] for each in ended] == [TERMINATED, TERMINATED]
    assert (tmp_path / "step").read_text() == "2"
    assert "resumed at step 2 of 3" in ended[0]["said"]
    places = [tmp_path / name / "checkpoints" / "final" / "wire.safetensors" for name in ("whole", "stopped")]
    whole, stopped = map(load_file, places)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if "seconds" not in key and key != "memory_gib"}
            for line in (tmp_path / name / "diagnostics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "stopped")
    ]
    assert lines[0] == lines[1]

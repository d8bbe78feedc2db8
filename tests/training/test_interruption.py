"""A signal ends a training with a snapshot, a sentence and its own exit status; the next call ends the same."""

import json
import os
import signal

import pytest
import torch

from latentwire.training import loop
from latentwire.training.training_step import Step
from tests.training.test_loop import run, weights_of

STEPS = {"steps": 4, "eval_steps": 2, "train_samples": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, **STEPS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("where", ["a step", "the first evaluation", "a later evaluation"])
def test_a_stopped_training_goes_on_from_its_snapshot_to_equal_weights_and_diagnostics(
    tmp_path, monkeypatch, whole, number, where
):
    honest, measured = loop.Training._train_step, Step.measure
    evaluations = []

    def step(self):
        if where == "a step" and self.done == 3:
            os.kill(os.getpid(), number)
        honest(self)

    def measure(self, parts):
        evaluations.append(1)
        if where != "a step" and len(evaluations) == (1 if where == "the first evaluation" else 2):
            os.kill(os.getpid(), number)
        return measured(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_train_step", step)
        patch.setattr(Step, "measure", measure)
        with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as stopped:
            run(tmp_path / "run", **STEPS)
    if number == signal.SIGTERM:
        assert stopped.value.code == 143
    done = {"a step": 3, "the first evaluation": 0, "a later evaluation": 2}[where]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "outside training signals do what they did"
    _, said = run(tmp_path / "run", **STEPS)
    assert f"resumed at step {done} of 4" in said
    ours, theirs = weights_of(tmp_path / "run"), weights_of(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "eval_seconds", "memory_gib")}
            for line in (folder / "diagnostics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, tmp_path / "run")
    ]
    assert lines[0] == lines[1]


def test_a_second_interrupt_stops_at_once():
    from latentwire.training.interruption import Interruption

    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

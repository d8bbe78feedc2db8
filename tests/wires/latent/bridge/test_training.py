"""Bridges train with every translator before every adapter, and begin where ridge regression leads."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from latentwire.errors import UserError
from latentwire.training.objectives import AnswerCrossEntropy, Distill, FlowMatching
from latentwire.wires.latent.ridge import Ridge
from tests.support.bridge_training import train
from tests.support.bridges import TRANSLATORS


@pytest.mark.slow
@pytest.mark.parametrize("adapted", ["embeddings", "deep_prefix", "both"])
@pytest.mark.parametrize("translated", TRANSLATORS)
def test_every_translator_trains_before_every_adapter(translated, adapted, tmp_path):
    objectives = [AnswerCrossEntropy(), Distill(tokens=2)]
    wire = {"translator": TRANSLATORS[translated]}
    if translated.startswith("dit"):
        objectives, wire = [*objectives, FlowMatching(weight=0.5)], {**wire, "width": 24}
    done, _ = train(tmp_path, adapted, objectives=tuple(objectives), wire=wire)
    assert done.steps == 3
    lines = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "loss" in line]
    assert len(told) == 3
    assert all(math.isfinite(value) for line in told for value in line["objectives"].values())
    first, last = (load_file(tmp_path / "checkpoints" / name / "wire.safetensors") for name in ("best", "final"))
    assert first.keys() == last.keys()


@pytest.mark.parametrize("teacher", ["answer", "prompt"])
def test_a_flow_trains_in_bf16(teacher, tmp_path):
    objectives = (AnswerCrossEntropy(), FlowMatching(teacher=teacher))
    wire = {"translator": TRANSLATORS["dit-attention-guided"], "width": 24}
    train(tmp_path, "both", objectives=objectives, wire=wire, precision="bf16", steps=1)
    weights = load_file(tmp_path / "checkpoints" / "final" / "wire.safetensors")
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in weights.values())


RIDGE = {"ridge": Ridge(contexts=8, penalty=1e-2), "adapter": "projected", "steps": 6}


@pytest.mark.slow
def test_ridge_is_where_a_training_begins(tmp_path):
    _, said = train(tmp_path / "solved", **RIDGE)
    assert any("of the variance of reader's keys and values explained" in line for line in said)
    _, drawn = train(tmp_path / "drawn", **{**RIDGE, "ridge": None})
    assert not any("ridge" in line for line in drawn)

    def first(name):
        lines = (tmp_path / name / "diagnostics.jsonl").read_text().splitlines()
        return json.loads(lines[0])["eval_loss"]

    assert first("solved") != first("drawn")
    with pytest.raises(UserError, match="ridge: found a wire to start from"):
        train(tmp_path / "more", begin=tmp_path / "solved" / "checkpoints" / "best", **RIDGE)


@pytest.mark.slow
def test_a_resumed_training_does_not_run_ridge_again(tmp_path, monkeypatch):
    from latentwire.training import loop

    class Killed(BaseException):
        pass

    def die(self, honest=loop.Training._train_step):
        if self.done == 4:
            raise Killed
        honest(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_train_step", die)
        with pytest.raises(Killed):
            train(tmp_path / "parts", **RIDGE)
    _, said = train(tmp_path / "parts", **RIDGE)
    assert any("resumed at step 3" in line for line in said)
    assert not any("ridge" in line for line in said)
    train(tmp_path / "whole", **RIDGE)
    one, two = (load_file(tmp_path / n / "checkpoints" / "final" / "wire.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(each, two[name]) for name, each in one.items())

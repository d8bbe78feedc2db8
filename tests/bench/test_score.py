"""The scoring benchmark compares the same answers to the same tokens."""

from __future__ import annotations

import sys

import pytest
import torch

from latentwire.bench import score, setup
from latentwire.bench.score_peer import Peer
from latentwire.lm.model import LM
from tests.support.models import tiny_model

DOCUMENTS = score.made("passage", 320, 8, 60) + score.made("letters", 320, 3, 50)


def test_ours_equals_lm_evals_hf_model_and_its_stand_in(monkeypatch):
    model = tiny_model()
    tokenizer = score._tokenizer(320)
    ours = score._ours(LM(tiny_model(), tokenizer), DOCUMENTS, "causal")
    peers = [Peer(model, tokenizer, 4)]
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    peers.append(Peer(model, tokenizer, 4))
    assert peers[1].note
    found = [score._theirs(peer, DOCUMENTS) for peer in peers]
    for theirs in found:
        for one, two in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert one == pytest.approx(two, abs=1e-4)
    assert found[0].run == found[1].run > 2 * ours.run


def test_every_row_names_what_ran_and_agrees_in_float32(monkeypatch):
    small = dict(setup.SHAPES["tiny"].config, hidden_size=64, intermediate_size=64, vocab_size=400, head_dim=16)
    monkeypatch.setitem(setup.SHAPES, "small", setup.Shape("llama", {**small, "num_hidden_layers": 1}))
    monkeypatch.setattr(score, "CONTEXT", 60)
    rows = list(score.measure(setup.Setup(torch.device("cpu"), "small")))
    assert len(rows) == len(score.TASKS) * 5
    for row in rows:
        assert next(iter(row.figures)) == "seconds"
        if row.who.startswith("latentwire"):
            assert row.figures["run_per_minimum"] <= 1.05
        else:
            assert row.figures["same_answers"] == 1

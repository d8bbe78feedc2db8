"""A value that is not finite ends a training before it reaches the weights, and says where it comes from."""

import pytest
import torch

from latentwire.training.finetuning.finetune import _Finetuning
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.not_finite import NotFinite
from latentwire.training.objectives import Distill
from tests.training.test_loop import SMALL, run, start, weights_of


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_the_objective_and_the_examples_that_a_nan_comes_from_are_named(tmp_path, monkeypatch, where):
    honest = Distill.loss

    def poisoned(self, evidence):
        loss = honest(self, evidence)
        if "one_hop" not in evidence.rows.names[0] or evidence.rows.names != poisoned.rows:
            return loss
        return loss * torch.nan if where == "loss" else _Poison.apply(loss)

    trainee = _Finetuning(start(), *_parts(), print)
    poisoned.rows = trainee.parts(2, 0, 1)[1].names
    monkeypatch.setattr(Distill, "loss", poisoned)
    lm = start()
    with pytest.raises(NotFinite) as failure:
        run(tmp_path / "run", lm, objectives=OBJECTIVES, accumulation=2)
    said = str(failure.value)
    assert said.startswith("step 3 of distill: found ")
    assert ("gradient norm nan" in said) or ("loss nan" in said)
    assert set(said.split("the batch holds ")[1].split(", ")) == set(poisoned.rows)


OBJECTIVES = [{"kind": "answer_ce"}, {"kind": "distill"}]


def _parts():
    from latentwire import wires

    settings = Finetuning(**{**SMALL, "objectives": OBJECTIVES, "accumulation": 2})
    return wires.parse(settings.wire).bind(start()), settings


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, monkeypatch):
    """The weights after the failure are those of the steps before it, bit for bit."""
    honest = Distill.loss
    monkeypatch.setattr(Distill, "loss", lambda self, evidence: _Poison.apply(honest(self, evidence)))
    lm = start()
    with pytest.raises(NotFinite):
        run(tmp_path / "run", lm, wire="text", objectives=OBJECTIVES)
    best = weights_of(tmp_path / "run", "best")
    assert all(torch.equal(tensor, start().model.state_dict()[name]) for name, tensor in best.items())


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "clip"])
def test_a_setting_that_is_not_finite_is_refused(field):
    with pytest.raises(ValueError, match="finite number"):
        Finetuning(**{**SMALL, field: float("inf")})

"""RMS norms of a 16-bit decoder are one operation, unless a layer would run again with others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from latentwire.lm import norms
from latentwire.lm.masks.reading import Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm

ROWS = [numbers(14, 1), numbers(9, 2)]
PLAIN = {"llama", "qwen2", "qwen3", "mistral", "ministral3"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The states that were normed in one operation; a CPU counts as a device where that is so."""
    seen: list[Tensor] = []
    real = norms._normed

    def watched(norm: Any, states: Tensor) -> Tensor:
        if states.dtype == torch.bfloat16:  # whether a norm is plain is tried in float32
            seen.append(states)
        return real(norm, states)

    monkeypatch.setattr(norms, "DEVICES", ("cpu",))
    monkeypatch.setattr(norms, "_normed", watched)
    return seen


def half(family: str = "llama") -> LM:
    lm = tiny_lm(family)
    lm.model.to(torch.bfloat16).requires_grad_(False)
    for name, weight in lm.model.named_parameters():
        if "norm" in name:
            weight.copy_(torch.linspace(0.5, 1.5, len(weight)))
    return lm


def read(lm: LM, *, autocast: bool = True) -> Tensor:
    prefix = Prefix.of_tokens(ROWS)
    assert prefix.ids is not None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return lm.run(prefix.ids, prefix.columns, Reading(prefix.columns))[prefix.columns.valid]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_modeling_files_norms(family: str, calls: list[Tensor]) -> None:
    lm = half(family)
    true = read(LM(copy.deepcopy(lm.model).float(), lm.tokenizer), autocast=False)
    calls.clear()
    ours = read(lm)
    assert bool(calls) == (family in PLAIN)
    norms.DEVICES = ()  # the fixture puts it back
    theirs = read(lm)
    off = [float((each.float() - true).norm() / true.norm()) for each in (ours, theirs)]
    assert off[0] < 1.3 * off[1]
    assert off[0] < 0.05


def test_gradients_flow_through_them(calls: list[Tensor]) -> None:
    norm: Any = half().model.get_decoder().layers[0].input_layernorm
    states = torch.randn(3, 5, len(norm.weight)).bfloat16().requires_grad_()
    above = torch.randn_like(states)
    (ours,) = torch.autograd.grad(norms._normed(norm, states), states, above)
    (theirs,) = torch.autograd.grad(norm(states), states, above)
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_a_prefill_has_them_too_whatever_the_mode_of_the_model(training: bool, calls: list[Tensor]) -> None:
    lm, prefix = half(), Prefix.of_tokens(ROWS)
    true = LM(copy.deepcopy(lm.model).float(), lm.tokenizer).prefill(prefix).logits
    lm.model.train(training)
    calls.clear()
    ours = lm.prefill(prefix).logits
    assert calls
    norms.DEVICES = ()
    theirs = lm.prefill(prefix).logits
    off = [float((each.float() - true).norm() / true.norm()) for each in (ours, theirs)]
    assert off[0] < 1.3 * off[1]


@pytest.mark.parametrize("why", ["float32", "recomputed layers", "training"])
def test_whatever_else_runs_has_the_modeling_files_norms(why: str, calls: list[Tensor]) -> None:
    lm = half()
    if why == "float32":
        lm.model.float()
    lm.recomputes = why == "recomputed layers"
    lm.model.train(why == "training")
    read(lm)
    assert not calls
    assert not any("forward" in vars(module) for module in lm.model.modules())

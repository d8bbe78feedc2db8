"""Low-rank layers train in few operations, to the numbers that PEFT computes."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from latentwire.lm.loading import lora
from latentwire.lm.loading.lora import Lora, inject, merge
from latentwire.lm.loading.lora_forward import LowRankLinear, cast
from latentwire.lm.model import LM
from latentwire.lm.recomputing import recomputing
from tests.support.models import tiny_lm

IDS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def lm() -> LM:
    lm = tiny_lm()
    lm.model.to(torch.bfloat16).requires_grad_(False)
    return lm


def adapted(lm: LM, **settings: float) -> tuple[LM, list[nn.Parameter]]:
    """A twin with adapters that change what it computes, and their parameters."""
    twin = lm.twin()
    weights = list(inject(twin, Lora(rank=4, **settings)).parameters())  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(1)
    for weight in weights:
        weight.data.copy_(0.05 * torch.randn(weight.shape, generator=draws))
    return twin, weights


def run(lm: LM, weights: list[nn.Parameter], *, at_once: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Final hidden states and the gradients of the adapters, under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        if at_once:
            with cast(lm.model, "cpu"):
                hidden = lm.model.get_decoder()(IDS).last_hidden_state
        else:
            hidden = lm.model.get_decoder()(IDS).last_hidden_state
    # Not their squares: after the final norm these have no gradient but rounding.
    toward = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    return hidden, list(torch.autograd.grad((hidden.float() * toward).sum(), weights, allow_unused=True))


def as_peft(lm: LM) -> None:
    """Give the layers PEFT's own forward pass."""
    for module in lm.model.modules():
        if type(module) is LowRankLinear:
            module.__class__ = Linear


def off(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("alpha", [4, 12])
def test_a_layer_is_nearer_to_the_exact_numbers_than_pefts(lm: LM, alpha: int) -> None:
    twin, _ = adapted(lm, alpha=alpha)
    layer = next(module for module in twin.model.modules() if isinstance(module, LowRankLinear))
    draws = torch.Generator().manual_seed(2)
    x = torch.randn(64, 8, layer.in_features, generator=draws).bfloat16().requires_grad_()
    above = torch.randn(64, 8, layer.out_features, generator=draws).bfloat16()
    matrices = layer._matrices

    def numbers() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        return [out.detach(), *torch.autograd.grad(out, [x, *matrices], above)]

    ours = numbers()
    layer.__class__ = Linear
    peft = numbers()
    base, far = layer.base_layer.weight.double(), x.detach().double().requires_grad_()
    down, up = (each.detach().double().requires_grad_() for each in matrices)
    out = far @ base.T + (far @ down.T) @ up.T * layer.scaling["default"]
    exact = [out.detach(), *torch.autograd.grad(out, [far, down, up], above.double())]
    assert [each.dtype for each in ours] == [each.dtype for each in peft]
    for mine, its, true in zip(ours, peft, exact, strict=True):
        assert off(mine, true) <= 1.02 * off(its, true) < 0.02


def test_a_model_reads_as_with_pefts_layers(lm: LM) -> None:
    twin, weights = adapted(lm)
    hidden, gradients = run(twin, weights)
    as_peft(twin)
    theirs, others = run(twin, weights)
    assert off(hidden, theirs) < 0.05
    mine, its = (torch.cat([each.flatten() for each in some]) for some in (gradients, others))
    assert off(mine, its) < 0.1


def test_casting_at_once_changes_nothing(lm: LM) -> None:
    twin, weights = adapted(lm)
    (once, gradients), (each, others) = run(twin, weights), run(twin, weights, at_once=False)
    assert torch.equal(once, each)
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert all(module.ready is None for module in twin.model.modules() if isinstance(module, LowRankLinear))


def test_recomputed_layers_have_the_same_gradients(lm: LM) -> None:
    twin, weights = adapted(lm)
    _, gradients = run(twin, weights)
    with recomputing(twin.model.get_decoder()):
        _, again = run(twin, weights)
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


@pytest.mark.parametrize("why", ["no autocast", "float32 weights", "dropout", "switched off"])
def test_whatever_else_runs_is_pefts(lm: LM, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.lm.loading.lora_forward._LowRank.apply", None)
    twin, _ = adapted(lm, dropout=0.5 if why == "dropout" else 0.0)
    twin.model.train(why == "dropout")
    if why == "float32 weights":
        twin.model.float()
    if why == "switched off":
        for module in twin.model.modules():
            if isinstance(module, LowRankLinear):
                module.enable_adapters(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=why != "no autocast"):
        assert torch.isfinite(twin.model(IDS).logits).all()


def test_adapters_that_are_added_to_copies_of_the_weights_change_nothing_but_their_cost() -> None:
    shared = tiny_lm()
    twin, _ = adapted(shared)
    ours = {id(each) for each in shared.model.parameters()}
    before = {name: each.clone() for name, each in shared.model.named_parameters()}
    states = twin.model.get_decoder()(IDS).last_hidden_state
    bare = shared.model.get_decoder()(IDS).last_hidden_state
    assert (states - bare).abs().max() > 0.01
    assert merge(twin.model)
    products = []
    for layer in twin.model.modules():
        if isinstance(layer, Linear):
            assert id(layer.get_base_layer().weight) not in ours
            layer.lora_A["default"].register_forward_hook(lambda *_: products.append(1))
    torch.testing.assert_close(twin.model.get_decoder()(IDS).last_hidden_state, states, rtol=1e-4, atol=1e-4)
    assert not products
    assert all(torch.equal(each, before[name]) for name, each in shared.model.named_parameters())


def test_adapters_stay_apart_in_16_bits_and_where_copies_would_be_large(lm: LM, monkeypatch) -> None:
    assert not merge(adapted(lm)[0].model)
    monkeypatch.setattr(lora, "COPIES", 1000)
    twin, _ = adapted(tiny_lm())
    weights = {id(each) for each in twin.model.parameters()}
    assert not merge(twin.model)
    assert weights == {id(each) for each in twin.model.parameters()}

"""Full weights in half the memory: bfloat16 weights, one update at a time, gradients freed as they are used."""

import json

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.loading.lora import Lora
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.optimizers import OneByOne, check_8bit, stochastically_rounded
from tests.support.killing import killed_after
from tests.training.test_loop import SMALL, run, weights_of

SMALLER = {"weights": "bfloat16", "precision": "bf16", "optimizer": "adafactor", "release_gradients": True}


def test_stochastic_rounding_keeps_the_mean_and_only_takes_the_two_neighbours():
    draws = torch.Generator().manual_seed(0)
    for value in (1.001, -1.001, 3e-5, -0.3):
        rounded = stochastically_rounded(torch.full((200_000,), value), draws).float()
        step = (rounded.max() - rounded.min()).item()
        assert len(rounded.unique()) == 2
        assert rounded.mean().item() == pytest.approx(value, abs=0.01 * step)


def test_a_value_that_bfloat16_holds_is_not_rounded():
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(stochastically_rounded(exact.float(), torch.Generator().manual_seed(0)), exact)


def quadratic(make, steps=3000):
    """One weight pulled to 1.003 in steps far below its rounding step."""
    weight = torch.nn.Parameter(torch.full((64,), 1.0, dtype=torch.bfloat16))
    optimizer = make(weight)
    for step in range(steps):
        if isinstance(optimizer, OneByOne):
            optimizer.begin(step)
        (weight.float() - 1.003).square().sum().mul(0.5).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight.detach().float().mean().item()


@pytest.mark.slow
def test_updates_below_a_weights_rounding_step_are_not_lost():
    def descent(weights):
        return torch.optim.SGD(weights, lr=0.01)

    plain = quadratic(lambda weight: descent([weight]))
    ours = quadratic(lambda weight: OneByOne([weight], descent, clip=1))
    assert plain == 1.0, "rounded to the nearest the weight never moves"
    assert ours == pytest.approx(1.003, abs=0.001)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_float32_weights_updated_one_by_one_are_those_of_the_plain_optimizer(optimizer):
    from latentwire.training import optimizers

    settings = Finetuning(**{**SMALL, "optimizer": optimizer, "weight_decay": 0.1})

    def trained(one_by_one):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        weights = list(model.parameters())
        if one_by_one:
            made = OneByOne(
                weights, lambda stand_ins: optimizers.make(settings, stand_ins), clip=1e9, release=True
            )
        else:
            made = optimizers.make(settings, weights)
        for step in range(5):
            if one_by_one:
                made.begin(step)
            model(torch.randn(4, 8)).square().sum().backward()
            made.step()
            made.zero_grad()
        return torch.cat([weight.detach().flatten() for weight in weights])

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-5, atol=1e-6)


def test_released_gradients_are_gone_when_the_backward_pass_ends_and_their_norm_is_that_of_all():
    def made(release):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        optimizer = OneByOne(
            model.parameters(), lambda some: torch.optim.SGD(some, lr=0.1), clip=1e9, release=release
        )
        optimizer.begin(0)
        model(torch.ones(1, 8)).square().sum().backward()
        return model, optimizer

    model, released = made(True)
    assert all(weight.grad is None for weight in model.parameters())
    _, kept = made(False)
    assert float(released.clip()) == pytest.approx(float(kept.clip()), rel=1e-5)


def losses(folder):
    lines = map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines())
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


@pytest.mark.slow
def test_a_finetuning_in_bfloat16_learns_as_one_in_float32_and_resumes_exactly(tmp_path):
    changes = {**SMALLER, "steps": 8, "eval_steps": 4, "activation_checkpointing": True}
    run(tmp_path / "full", steps=8, eval_steps=4, optimizer="adafactor")
    run(tmp_path / "small", **changes)
    full, small = losses(tmp_path / "full"), losses(tmp_path / "small")
    assert small[-1] < small[0]
    assert small[0] - small[-1] == pytest.approx(full[0] - full[-1], rel=0.25)
    assert {tensor.dtype for tensor in weights_of(tmp_path / "small").values()} == {torch.bfloat16}

    with killed_after(6):
        run(tmp_path / "parts", **changes)
    run(tmp_path / "parts", **changes)
    whole, parts = weights_of(tmp_path / "small"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": Lora(rank=2)}, "release_gradients: found true beside lora, expected false"),
        ({"lora": Lora(rank=2), "release_gradients": False}, "weights: found bfloat16 beside lora"),
        ({"precision": "fp32"}, "precision: found fp32 beside weights: bfloat16, expected bf16"),
        ({"accumulation": 2}, "release_gradients: found true beside accumulation: 2, expected accumulation: 1"),
    ],
)
def test_options_of_full_weights_refuse_what_they_cannot_do(changes, said):
    with pytest.raises(ValueError, match=said):
        Finetuning(**{**SMALL, **SMALLER, **changes})


def test_8_bit_state_is_refused_with_what_to_do_where_it_cannot_be_had(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install bitsandbytes.*adafactor"):
        check_8bit("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError, match="expected a GPU"):
        check_8bit("cpu")

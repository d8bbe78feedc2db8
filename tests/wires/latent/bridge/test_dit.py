"""A flow samples the same latents of a context every time, from noise alone, and learns where it shall lead."""

import random
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from latentwire.wires.latent.translators import DitConfig
from tests.support.bridges import CONTEXTS, SMALL, TRANSLATORS, bridge


def flow(source, reader, **changes):
    modules = bridge(source, reader, translator=SMALL.model_copy(update=changes))
    return modules.encoder.translator, modules.encoder.read(CONTEXTS).states


@torch.no_grad()
def test_noise_is_a_function_of_seed_and_context(source, reader):
    translator, states = flow(source, reader)
    torch.manual_seed(1)
    first = translator(states)
    torch.manual_seed(2)
    assert torch.equal(translator(states), first)
    other, _ = flow(source, reader, seed=1)
    other.load_state_dict(translator.state_dict())
    assert not torch.allclose(other(states), first, atol=1e-2)
    drawn = translator._noise(["a", "b"], states.real[:2])
    assert not torch.allclose(drawn[0, :2], drawn[1, :2])
    assert not drawn[~states.real[:2]].any()


@torch.no_grad()
def test_an_untrained_flow_returns_its_noise(source, reader):
    translator = bridge(source, reader, translator=SMALL, shake=False).encoder.translator
    states = bridge(source, reader).encoder.read(CONTEXTS).states
    assert torch.equal(translator(states), translator._noise([f"0/{each}" for each in CONTEXTS], states.real))


@pytest.mark.parametrize(("training", "steps"), [(True, 2), (False, 3)])
@torch.no_grad()
def test_sampling_takes_its_euler_steps(source, reader, training, steps):
    translator, states = flow(source, reader)
    translator.train(training)
    at, point = [], translator._noise([f"0/{each}" for each in CONTEXTS], states.real)
    known = translator._known(states)
    for step in range(steps):
        at.append(step / steps)
        point = point + translator._velocity(point, torch.full((3,), at[-1]), known) / steps
    torch.testing.assert_close(translator(states), point)


@torch.no_grad()
def test_guidance_moves_away_from_the_unconditional_sample(source, reader):
    guided, states = flow(source, reader, guidance=3.0, steps=1)
    start = guided._noise([f"0/{each}" for each in CONTEXTS], states.real)
    at = torch.zeros(3)
    hidden = torch.ones(3, dtype=torch.bool)
    speed, plain = (guided._velocity(start, at, guided._known(states, hide)) for hide in (None, hidden))
    torch.testing.assert_close(guided(states), start + plain + 3 * (speed - plain))
    assert not torch.allclose(speed, plain, atol=1e-3)
    swapped, turned = plain[0], guided._velocity(start, at, guided._known(states, hidden & False))
    torch.testing.assert_close(turned, speed, msg="what is not hidden is heard")
    assert swapped.isfinite().all()
    assert flow(source, reader, guidance=1.0)[0].nothing is None


def test_the_matching_loss_has_a_gradient_everywhere(source, reader):
    for name in ("dit", "dit-attention-guided", "dit-pooled"):
        modules = bridge(source, reader, translator=TRANSLATORS[name].model_copy(update={"drop": 0.9}))
        translator, states = modules.encoder.translator, modules.encoder.read(CONTEXTS).states
        aims = torch.randn(*states.real.shape, 16)
        draws = [random.Random(each) for each in range(3)]
        translator.matching(states, aims, draws)[states.real].mean().backward()
        assert [key for key, each in translator.named_parameters() if not each.grad.any()] == []


def test_matching_depends_on_its_own_draws_and_on_no_other_row(source, reader):
    translator, states = flow(source, reader, guidance=2.0, drop=0.5)
    torch.manual_seed(0)
    aims = torch.randn(*states.real.shape, 16)

    def apart(seeds):
        return translator.matching(states, aims, [random.Random(each) for each in seeds])

    one, two = apart([1, 2, 3]), apart([1, 5, 6])
    torch.testing.assert_close(one[0], two[0])
    assert not torch.allclose(one[1][states.real[1]], two[1][states.real[1]], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_trained_flow_samples_its_aims(source, reader, pool):
    """Aims that are a function of the context: sampling comes near them, and nearer than to another context's."""
    modules = bridge(
        source, reader, translator=DitConfig(hidden=32, layers=2, heads=2, pool=pool, steps=8), shake=False
    )
    translator, states = modules.encoder.translator, modules.encoder.read(CONTEXTS).states
    torch.manual_seed(0)
    aims = torch.randn(*states.real.shape, 16)
    optimizer = torch.optim.Adam(translator.parameters(), lr=3e-3)
    for step in range(250):
        draws = [random.Random(f"{step}/{row}") for row in range(3)]
        loss = translator.matching(states, aims, draws)[states.real].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        made = translator.eval()(states)
    own = float((made - aims)[states.real].square().mean())
    assert own < 0.25 < 1.0 < float((made[:1, :3] - aims[1:2, :3]).square().mean())


@pytest.mark.parametrize(("pooled", "known"), [(False, True), (True, False)])
@torch.no_grad()
def test_latents_depend_on_their_place_unless_pooled_only(source, reader, pooled, known):
    """Columns that all say the same tell nothing of places by attention."""
    translator, states = flow(source, reader, pooled_only=pooled)
    content = states.content[:, :1].expand_as(states.content)
    here, there = (replace(states, content=content, places=states.places + by) for by in (0, 4))
    apart = (translator(there) - translator(here))[states.real].abs().max()
    assert (float(apart) > 1e-3) == known


def test_pooled_only_has_neither_cross_attention_nor_places(source, reader):
    translator, states = flow(source, reader, pooled_only=True)
    assert all(block.across is None and block.among.slope is None for block in translator.blocks)
    known = translator._known(states)
    point = torch.randn(3, states.real.shape[1], 16)
    count = int(states.real[0].sum())
    order = torch.randperm(count)
    with torch.no_grad():
        made, turned = (
            translator._velocity(each, torch.full((3,), 0.5), known)
            for each in (point, torch.cat([point[:, order], point[:, count:]], 1))
        )
    torch.testing.assert_close(made[0, order], turned[0, :count], atol=1e-5, rtol=1e-4)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValidationError, match="hidden: found 10, expected an even multiple of the 4 heads"):
        DitConfig(hidden=10, heads=4)

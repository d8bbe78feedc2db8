"""Every translator before every adapter: it computes, it learns, and comes back from a file as it was."""

import pytest
import torch

from latentwire.errors import UserError
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import LearnedSlots
from latentwire.wires.latent.translators import CrossConfig, MlpConfig, States
from tests.support.bridges import ADAPTERS, CONTEXTS, TRANSLATORS, bridge
from tests.support.latent_wires import loss


@pytest.mark.parametrize("adapted", ADAPTERS)
@pytest.mark.parametrize("translated", TRANSLATORS)
def test_a_step_has_a_finite_loss_and_reaches_every_piece(translated, adapted, source, reader):
    modules = bridge(source, reader, adapted, translator=TRANSLATORS[translated]).train()
    found = loss(modules, reader, CONTEXTS)
    found.backward()
    assert torch.isfinite(found)
    still = [name for name, each in modules.pieces().items() if each.grad is None or not each.grad.any()]
    assert still == []
    assert all(torch.isfinite(each.grad).all() for each in modules.pieces().values())


@pytest.mark.parametrize("translated", TRANSLATORS)
def test_a_few_steps_from_the_beginning_bring_the_loss_down(translated, source, reader):
    modules = bridge(source, reader, translator=TRANSLATORS[translated], shake=False).train()
    optimizer = torch.optim.Adam(modules.trained().values(), lr=0.01)
    losses = []
    for _ in range(20):
        losses.append(loss(modules, reader, CONTEXTS))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < 0.8 * float(losses[0].detach())


@pytest.mark.parametrize("translated", TRANSLATORS)
@torch.no_grad()
def test_a_saved_bridge_comes_back_to_the_bit(translated, source, reader, tmp_path):
    modules = bridge(source, reader, "projected", translator=TRANSLATORS[translated])
    modules.save(tmp_path)
    fresh = LatentModules(modules.config, {reader.name: reader}, source).eval()
    assert not torch.equal(fresh(CONTEXTS).flat(), modules(CONTEXTS).flat())
    fresh.restore(tmp_path)
    assert torch.equal(fresh(CONTEXTS).flat(), modules(CONTEXTS).flat())
    for ours, theirs in zip(
        *(m.deliver(m(CONTEXTS), reader.name).memory.keys for m in (modules, fresh)), strict=True
    ):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_with_shut_gates_cross_is_a_linear_map_of_its_anchors(source, reader):
    modules = bridge(source, reader, translator=CrossConfig(heads=2, mixing=1), shake=False)
    translator, states = modules.encoder.translator, modules.encoder.read(CONTEXTS).states
    mapped = translator.norm(translator.inward(states.weights @ states.content))
    torch.testing.assert_close(translator(states)[states.real], mapped[states.real])


@pytest.mark.parametrize("translated", ["cross", "dit"])
@torch.no_grad()
def test_a_fixed_number_of_latents_is_the_same_for_every_context(translated, source, reader):
    found = bridge(source, reader, translator=TRANSLATORS[translated], select=LearnedSlots(slots=5))(CONTEXTS)
    assert found.vectors.shape == (3, 5, 16)
    assert bool(found.valid.all())
    assert bool((found.positions < found.length[:, None]).all())


def test_mlp_refuses_a_fixed_number(source, reader):
    with pytest.raises(UserError, match="mlp makes latents of columns, found a fixed number"):
        bridge(source, reader, translator=MlpConfig(), select=LearnedSlots(slots=5))


def test_cross_refuses_heads_that_do_not_divide_its_width(source, reader):
    with pytest.raises(UserError, match="cross: found latents of width 16, expected a multiple of its 3 heads"):
        bridge(source, reader, translator=CrossConfig(heads=3))


@torch.no_grad()
def test_mlp_latents_see_only_their_own_columns_and_cross_latents_see_all(source, reader):
    for name, heard in (("mlp", False), ("cross", True), ("dit", True), ("dit-pooled", True)):
        modules = bridge(source, reader, translator=TRANSLATORS[name])
        states = modules.encoder.read(CONTEXTS[:1]).states
        content = states.content.clone()
        content[:, 5] += torch.randn_like(content[:, 5])  # the second latent is made of column 3
        other = States(content, states.valid, states.weights, states.places, states.contexts)
        apart = (modules.encoder.translator(other) - modules.encoder.translator(states))[0, 1].abs().max()
        assert (float(apart) > 1e-4) == heard, name

"""Where latents stand, and which of them are one reader's own."""

import torch

from latentwire.wires.latent.adapters import DeepPrefixConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.refine import seen_by
from latentwire.wires.latent.select import LearnedSlots, spread
from tests.support.latent_wires import CONTEXTS, delivered, named_lm, wire


def test_spread_positions_lie_inside_the_source():
    assert spread(torch.tensor([8, 2, 1]), 4).tolist() == [[1, 3, 5, 7], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_private_latents_are_one_readers_each():
    seen = [set(seen_by(reader, 3, 2, 20).tolist()) for reader in range(3)]
    assert [len(each) for each in seen] == [16, 16, 16]
    common = seen[0] & seen[1] & seen[2]
    assert len(common) == 14
    assert set().union(*seen) == set(range(20))


def test_a_reader_sees_its_private_latents_and_not_anothers():
    lm, other = named_lm("llama", "a"), named_lm("qwen3", "b")
    modules = wire(
        lm, other, adapter=DeepPrefixConfig(hidden=8), encoder=SelfConfig(select=LearnedSlots(slots=6)), private=2
    )
    assert delivered(modules, "a")[1].shape[1] == 4
    latents = modules(CONTEXTS)
    mine, its = (set(seen_by(at, 2, 2, 6).tolist()) for at in (0, 1))
    for at in range(6):
        keys = tuple(each.clone() for each in latents.tensors)
        for each in keys:
            each[..., at, :] += 1
        changed = latents.with_tensors(keys)
        for reader, sees in (("a", mine), ("b", its)):
            pair = [modules.deliver(each, reader).memory.keys[0] for each in (latents, changed)]
            assert torch.equal(*pair) == (at not in sees)

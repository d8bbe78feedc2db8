"""A source's states become latents of each context alone, whatever stands beside it."""

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm import prompt_format
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.encoders.source import SourceConfig
from latentwire.wires.latent.select import Anchors, LearnedSlots, Mean
from latentwire.wires.latent.translators import CrossConfig, MlpConfig
from tests.support.bridges import CONTEXTS, TRANSLATORS, bridge, encoder, source_lm
from tests.support.latent_wires import one_by_one

MAKES = {
    **{name: {"translator": each} for name, each in TRANSLATORS.items()},
    "aligned": {"align": True, "states": "keys", "select": Mean(ratio=2)},
    "slots": {"select": LearnedSlots(slots=5), "translator": TRANSLATORS["cross"]},
    "dit-slots": {"select": LearnedSlots(slots=5), "translator": TRANSLATORS["dit"]},
    "mixing": {"translator": CrossConfig(layers=1, heads=2, gate=0.1, mixing=1), "mask": "prefix"},
}


def made(name, reader):
    changes = dict(MAKES[name])
    return {**changes, "align": reader.name} if changes.pop("align", None) else changes


@pytest.mark.parametrize("name", MAKES)
@torch.no_grad()
def test_latents_depend_on_neither_batch_nor_order_nor_padding(name, source, reader):
    modules = bridge(source, reader, **made(name, reader))
    together = one_by_one(modules, CONTEXTS)
    assert (together.flat()[0, 1] - together.flat()[1, 1]).norm() > 1e-3, "all contexts say the same"


@torch.no_grad()
def test_aligned_latents_stand_at_the_readers_tokens(source, reader):
    read = bridge(source, reader, align=reader.name, select=Anchors(ratio=1)).encoder.read(CONTEXTS)
    lengths = [len(reader.format.before(each, reader)) for each in CONTEXTS]
    assert read.length.tolist() == lengths
    assert read.states.real.sum(1).tolist() == lengths
    assert lengths != [len(source.format.before(each, source)) for each in CONTEXTS]


def states(source, **changes):
    settings = SourceConfig(layers=(0,), states="keys", even=False, translator=MlpConfig(hidden=4), **changes)
    return settings.build(source).read(["ababababab"]).states.content[0]


@torch.no_grad()
def test_unrotated_keys_do_not_depend_on_position(source):
    ids = source.format.before("ababababab", source)
    again = [at for at, token in enumerate(ids) if token == max(ids, key=ids.count)]
    assert len(again) > 1
    half = states(source).shape[1] // 2
    plain, turned = states(source)[again], states(source, unrotate=False)[again]
    torch.testing.assert_close(plain, plain[:1].expand_as(plain))
    assert float((turned[1] - turned[0])[:half].abs().max()) > 0.1
    torch.testing.assert_close(turned[:, half:], plain[:, half:], msg="values are never rotated")
    torch.testing.assert_close(turned.norm(dim=1), plain.norm(dim=1))


@torch.no_grad()
def test_states_of_one_size_have_it_in_every_layer(source):
    even = SourceConfig(translator=MlpConfig(hidden=4)).build(source).read(CONTEXTS[:1]).states.content
    size = even.unflatten(-1, (2, -1)).std(-1, unbiased=False)
    torch.testing.assert_close(size, torch.ones_like(size), atol=1e-3, rtol=0)


def test_layers_are_the_upper_half_or_some_that_the_source_has(source):
    def width(layers):
        return (
            SourceConfig(layers=layers, translator=MlpConfig(hidden=4)).build(source).translator.skip.in_features
        )

    hidden = source.embeddings().shape[1]
    assert width(None) == 2 * hidden
    assert width((0, 2, -1)) == 3 * hidden
    whole, named = (SourceConfig(layers=each, translator=MlpConfig()).build(source) for each in (None, (2, -1)))
    assert torch.equal(whole.read(CONTEXTS).states.content, named.read(CONTEXTS).states.content)
    for wrong in (4, -5):
        with pytest.raises(UserError, match=f"layers: found {wrong}, expected one of the model's 4 layers"):
            width((wrong,))


def test_the_source_neither_learns_nor_changes(source, reader):
    modules = bridge(source_lm(), reader)
    assert all(name.startswith(("encoder.translator", "adapters")) for name in modules.pieces())
    modules(CONTEXTS).flat().sum().backward()
    assert not modules.encoder.read(CONTEXTS).states.content.requires_grad


@torch.no_grad()
def test_the_readers_own_encoder_has_as_many_latents_each_at_the_last_column_of_its_token(source, reader):
    """Of a wire that a bridge imitates: its latents follow the bridge's, token by token."""
    other = encoder(align=reader.name).build(source).read(CONTEXTS).states
    found = SelfConfig(align=reader.name, rank=0, select=Anchors(ratio=3)).build(source)(CONTEXTS)
    assert torch.equal(found.valid, other.real)
    for row, context in enumerate(CONTEXTS):
        _, its = reader.format.spans(context, reader)
        _, ours = source.format.spans(context, source)
        wanted = [its[0], *(its[min(at + 3, len(its)) - 1] for at in range(1, len(its), 3))]
        last = [max(at for at, (a, b) in enumerate(ours) if a < end and start < b) for start, end in wanted]
        assert found.positions[row][found.valid[row]].tolist() == last


@pytest.mark.parametrize("kind", ["self", "source"])
@pytest.mark.parametrize("aligned", [True, False])
@torch.no_grad()
def test_contexts_prepared_ahead_are_not_tokenized_again(kind, aligned, source, reader, monkeypatch):
    align = reader.name if aligned else None
    config = SelfConfig(align=align, rank=0) if kind == "self" else encoder(align=align)
    torch.manual_seed(0)
    plain = config.build(source)(CONTEXTS)
    torch.manual_seed(0)
    told = config.build(source)
    told.ahead(CONTEXTS)

    def refuse(*given, **how):
        raise AssertionError("tokenized")

    monkeypatch.setattr(type(source.tokenizer), "__call__", refuse)
    monkeypatch.setattr(prompt_format, "token_ids", refuse)
    with pytest.raises(AssertionError, match="tokenized"):
        told(["Another context."])
    found = told(CONTEXTS)
    for ours, theirs in zip(found.tensors, plain.tensors, strict=True):
        assert torch.equal(ours, theirs)

"""What keeps a part of a context keeps as much of it as a latent wire of the same ratio."""

import pytest
import torch

from latentwire import wires
from latentwire.lm.masks.attended import attended
from latentwire.lm.masks.attention import kernel
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.adapters import NativeConfig
from latentwire.wires.latent.encoders import ConstantConfig, SelfConfig
from latentwire.wires.latent.modules import LatentConfig, LatentModules
from latentwire.wires.latent.select import Anchors
from tests.support.models import tiny_lm

CONTEXTS = [
    "Ada lives in the old town by the river.",
    "The heron stood.",
    "a",
    "one two three four five six seven",
]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def latents(lm, spec):
    return wires.parse(spec).bind(lm).encode(CONTEXTS)


def untrained(lm, ratio):
    encoder = SelfConfig(select=Anchors(ratio=ratio), mask="causal", rank=0, marks=False)
    config = LatentConfig(source=lm.name, encoder=encoder, adapters={lm.name: NativeConfig()})
    return LatentModules(config, {lm.name: lm}, lm)(CONTEXTS)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 7])
def test_nth_is_a_latent_wire_before_its_first_step(lm, ratio):
    ours, theirs = latents(lm, f"nth,ratio={ratio}"), untrained(lm, ratio)
    assert torch.equal(ours.valid, theirs.valid)
    assert torch.equal(ours.positions * ours.valid, theirs.positions)
    kept = ours.valid[..., None]
    torch.testing.assert_close(ours.flat() * kept, theirs.flat() * kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["budget", "prune"])
def test_text_of_a_ratio_is_no_longer_than_its_latents(lm, kind, ratio):
    columns = untrained(lm, ratio).valid.sum(1).tolist()
    texts = latents(lm, f"{kind},ratio={ratio}").texts
    for context, text, count in zip(CONTEXTS, texts, columns, strict=True):
        # A line break stands after every context: a context of one token cannot become less.
        assert len(lm.format.before(text, lm)) <= max(count, 2)
        assert (text == context) == (ratio == 1 or context == "a")


def test_evict_keeps_as_many_columns_as_nth_and_names_evenly_spread_positions(lm):
    ours, theirs = latents(lm, "evict,ratio=3"), latents(lm, "nth,ratio=3")
    assert torch.equal(ours.valid, theirs.valid)
    assert torch.equal(ours.positions, theirs.positions)
    assert ours.nbytes() == theirs.nbytes()
    assert not torch.allclose(ours.flat(), theirs.flat(), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_neox"])
def test_evict_that_evicts_nothing_reads_as_text(family):
    """Every head keeps every column, found by its attention and turned to its place: the reader cannot tell."""
    lm = tiny_lm(family)
    ours, theirs = latents(lm, "evict,ratio=1"), latents(lm, "nth,ratio=1")
    torch.testing.assert_close(ours.flat()[ours.valid], theirs.flat()[theirs.valid], atol=1e-4, rtol=0)


def test_evict_keeps_what_a_head_attends_to_most_and_keeps_its_position(lm):
    row = lm.format.before(CONTEXTS[0], lm)
    again = lm.tokenizer("\n", add_special_tokens=False)["input_ids"]
    prefix = Prefix.of_tokens([row + again + row])
    queries = torch.arange(prefix.columns.width)[None] >= len(row)
    memory, received = attended(lm, prefix, queries)
    found = wires.parse("evict,tokens=2").bind(lm).encode(CONTEXTS[:1])
    best = received[1][0, 1, : len(row)].topk(2).indices.sort().values
    torch.testing.assert_close(found.values[1][0, 1], memory.values[1][0, 1, best])
    there = lm.rotary.rotate(1, memory.keys[1], prefix.columns.positions)[0, 1, best]
    torch.testing.assert_close(lm.rotary.rotate(1, found.keys[1], found.positions)[0, 1], there, atol=1e-5, rtol=0)


def test_attention_is_watched_only_inside_the_call(lm):
    before = kernel(lm.model)
    prefix = Prefix.of_tokens([[5, 6, 7, 8]])
    memory, received = attended(lm, prefix, torch.tensor([[False, False, False, True]]))
    assert kernel(lm.model) == before
    assert [each.shape for each in received] == [(1, 2, 4)] * 3
    assert all(bool((each > 0).all() and (each <= 1).all()) for each in received)
    for ours, theirs in zip(memory.keys, lm.memorize(prefix)[1].keys, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_prune_keeps_what_the_reader_could_not_have_guessed(lm):
    ids = lm.tokenizer(CONTEXTS[0], add_special_tokens=False)["input_ids"]
    row = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
    told = -lm.model(row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
    kept = lm.tokenizer(latents(lm, "prune,tokens=5").texts[0], add_special_tokens=False)["input_ids"]
    assert kept == [ids[at] for at in sorted(told.topk(5).indices.tolist())][: len(kept)]
    assert len(kept) >= 4


@torch.no_grad()
def test_mean_leaves_a_context_out_of_its_own_average(lm):
    wire = wires.parse("nth,ratio=3:mean").bind(lm).sampled(CONTEXTS[:2])
    plain = latents(lm, "nth,ratio=3")
    found = wire.encode(CONTEXTS[:2])
    count = int(plain.valid[1].sum())
    torch.testing.assert_close(found.flat()[0, :count], plain.flat()[1, :count], atol=1e-5, rtol=0)
    # Where the only other context has no latent, its last one stands.
    torch.testing.assert_close(found.flat()[0, count], plain.flat()[1, count - 1], atol=1e-5, rtol=0)
    stranger = wire.encode(CONTEXTS[3:]).flat()[0, :count]
    both = plain.flat()[:2, :count].mean(0)
    torch.testing.assert_close(stranger, both, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_learned_prefix_is_the_same_for_every_context_and_starts_from_token_states(lm):
    config = LatentConfig(source=lm.name, encoder=ConstantConfig(tokens=4), adapters={lm.name: NativeConfig()})
    modules = LatentModules(config, {lm.name: lm}, lm)
    found = modules(CONTEXTS)
    assert torch.equal(found.flat()[0], found.flat()[1])
    assert found.length.tolist() == [4] * 4
    assert {name.split(".")[1] for name in modules.trained()} == {"keys", "values"}
    real = latents(lm, "nth,ratio=1")
    assert 0.3 < float(found.keys[0].norm(dim=-1).mean() / real.keys[0].norm(dim=-1).mean()) < 3


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_quantized_latents_hold_so_many_numbers_and_take_so_many_bytes(lm, bits):
    plain, found = latents(lm, "nth,ratio=3"), latents(lm, f"nth,ratio=3:{bits}bit")
    head = found.keys[1][0, 0, 1]
    assert len(set((head / head.abs().max() * (2 ** (bits - 1) - 1)).round(decimals=3).tolist())) <= 2**bits
    assert float((found.keys[1] - plain.keys[1]).abs().max()) <= float(plain.keys[1].abs().max()) / 2 ** (bits - 1)
    # A scale of 16 bits for each head's 8 numbers comes on top.
    assert found.nbytes() == [int(n / 16 * (bits + 2)) for n in plain.nbytes()]

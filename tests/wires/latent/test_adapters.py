"""What an adapter gives before anything is learned is of the reader's own size."""

import pytest
import torch

from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.adapters import BothConfig, DeepPrefixConfig, EmbeddingsConfig, NativeConfig
from latentwire.wires.latent.adapters.adapter import kv_shape
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.refine import Refiner, RefinerConfig
from latentwire.wires.latent.select import Anchors
from tests.support.latent_wires import CONTEXTS, QUESTIONS
from tests.support.models import tiny_lm

SOURCE = 24


def latents(count=64, size=1.0):
    torch.manual_seed(0)
    valid = torch.ones(2, count, dtype=torch.bool)
    vectors = size * torch.randn(2, count, SOURCE)
    return Latents(valid, valid.long().cumsum(1) - 1, torch.tensor([4 * count, 2 * count]), vectors)


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt_neox"])
@torch.no_grad()
def test_untrained_keys_and_values_are_as_large_as_the_readers_own(family, size):
    lm = tiny_lm(family)
    torch.manual_seed(0)
    made = DeepPrefixConfig(hidden=32).build(SOURCE, lm)(latents(size=size))
    rows = [lm.format.before(text, lm) for text in CONTEXTS]
    columns = (prefix := Prefix.of_tokens(rows)).columns.valid.clone()
    columns[:, 0] = False
    own = lm.memorize(prefix)[1]
    for ours, theirs in ((made.keys, own.keys), (made.values, own.values)):
        for one, other in zip(ours, theirs, strict=True):
            real = other.transpose(1, 2)[columns]
            found = one.transpose(1, 2).flatten(0, 1)
            assert found.shape[1:] == real.shape[1:] == kv_shape(lm)[1:]
            assert 0.6 < float(found.std(0).mean() / real.std(0).mean()) < 1.6
            assert float((found.mean(0) - real.mean(0)).square().mean().sqrt() / real.std(0).mean()) < 1


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
@torch.no_grad()
def test_untrained_soft_tokens_are_as_large_as_the_readers_embeddings(size):
    lm = tiny_lm()
    made = EmbeddingsConfig().build(SOURCE, lm)(latents(size=size)).embeddings
    torch.testing.assert_close(made.square().mean(-1).sqrt(), lm.embeddings().square().mean().sqrt().expand(2, 64))


@pytest.mark.parametrize("kind", [EmbeddingsConfig, DeepPrefixConfig])
@torch.no_grad()
def test_film_starts_without_effect_and_learns_the_tokens_per_latent(kind):
    lm = tiny_lm()
    torch.manual_seed(0)
    adapter = kind(hidden=16, film=True).build(SOURCE, lm)
    for each in adapter.parameters():  # the outer layer of the soft tokens begins at zero
        each += 0.1 * torch.randn_like(each) if each.ndim == 2 and each.shape[1] == 16 else 0
    same = latents()
    same.vectors[1] = same.vectors[0]

    def rows():
        made = adapter(same)
        return made.embeddings if made.embeddings is not None else made.values[0]

    assert torch.equal(rows()[0], rows()[1])
    adapter.film.map.weight.normal_()
    assert (rows()[0] - rows()[1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_refiner_starts_as_the_identity():
    plain = latents()
    refined = Refiner(plain, None, RefinerConfig(layers=2, heads=4)).eval()(plain)
    assert torch.equal(refined.vectors, plain.vectors)


@torch.no_grad()
def test_a_width_makes_one_vector_of_all_tensors_that_cross():
    lm = tiny_lm()
    config = LatentConfig(
        source="llama", encoder=SelfConfig(gives="both", rank=0), width=8, adapters={"llama": DeepPrefixConfig()}
    )
    message = LatentModules(config, {"llama": lm}, lm)(CONTEXTS)
    assert [each.shape for each in message.tensors] == [(3, message.valid.shape[1], 8)]
    assert message.nbytes() == [2 * 8 * count for count in message.valid.sum(1).tolist()]


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    adapter = DeepPrefixConfig(hidden=16, dropout=0.5).build(SOURCE, tiny_lm())
    message = latents()
    assert not torch.equal(adapter(message).keys[0], adapter(message).keys[0])
    adapter.eval()
    assert torch.equal(adapter(message).keys[0], adapter(message).keys[0])


@torch.no_grad()
def test_soft_tokens_and_keys_are_both_read():
    lm = tiny_lm()
    config = LatentConfig(
        source="llama",
        encoder=SelfConfig(select=Anchors(ratio=3), rank=0),
        adapters={"llama": BothConfig(prefix=NativeConfig())},
    )
    modules = LatentModules(config, {"llama": lm}, lm).eval()
    shared = modules.deliver(modules(CONTEXTS), "llama")
    after = [lm.format.after(question, lm) for question in QUESTIONS]

    def answer():
        return lm.prefill(shared.ask(after, lm)).logits

    whole = answer()
    for tensor in (shared.content, shared.memory.values[0], shared.memory.keys[-1]):
        kept = tensor.clone()
        tensor.mul_(2)
        assert (answer() - whole).abs().max() > 1e-4
        tensor.copy_(kept)

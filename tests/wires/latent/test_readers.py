"""Several readers of one wire, and one more for a wire that is finished."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.errors import UserError
from latentwire.lm.prompts import Prompt
from latentwire.wires.latent.adapters import DeepPrefixConfig, EmbeddingsConfig, NativeConfig
from latentwire.wires.latent.checkpoint import WEIGHTS
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.latent.modules import LatentModules
from tests.support.latent_wires import ADAPTERS, CONTEXTS, QUESTIONS, delivered, loss, named_lm, shaken, wire

VECTORS = SelfConfig(rank=2, gives="vectors")


@pytest.fixture
def heron():
    return named_lm("llama", "heron")


@pytest.fixture
def wren():
    """Of another family, narrower, with other heads and layers."""
    return named_lm("qwen3", "wren", hidden_size=24, num_hidden_layers=2, num_key_value_heads=1)


@pytest.mark.parametrize("adapted", ["embeddings", "deep_prefix", "both"])
def test_one_message_is_read_by_models_of_other_shapes(adapted, heron, wren):
    modules = wire(heron, wren, adapter=ADAPTERS[adapted], encoder=VECTORS).train()
    (loss(modules, heron) + loss(modules, wren)).backward()
    assert all(each.grad.any() for each in modules.pieces().values())


def finished(heron, folder):
    modules = wire(heron, adapter=DeepPrefixConfig(hidden=8), encoder=VECTORS)
    modules.save(folder)
    return modules


def extended(heron, wren, readers=None):
    config = LatentConfig(
        source="heron",
        encoder=VECTORS,
        adapters={"heron": DeepPrefixConfig(hidden=8), "wren": EmbeddingsConfig(hidden=8)},
    )
    torch.manual_seed(9)
    return shaken(LatentModules(config, readers or {"heron": heron, "wren": wren}, heron))


def test_a_new_reader_learns_alone_and_leaves_the_old_one_as_it_was(heron, wren, tmp_path):
    old = finished(heron, tmp_path / "old")
    modules = extended(heron, wren)
    modules.restore(tmp_path / "old", new=["wren"])
    modules.freeze_all_but("wren")
    assert {name.split(".")[1] for name in modules.trained()} == {"@wren"}
    optimizer = torch.optim.SGD([p for p in modules.parameters() if p.requires_grad], lr=0.1)
    before = delivered(modules, "wren")
    loss(modules, wren).backward()
    optimizer.step()
    assert not torch.equal(before[-1], delivered(modules, "wren")[-1])
    modules.save(tmp_path / "new")
    fresh = extended(heron, wren)
    fresh.restore(tmp_path / "new")
    for name, source in (("heron", old), ("wren", modules)):
        for ours, theirs in zip(delivered(source, name), delivered(fresh, name), strict=True):
            assert torch.equal(ours, theirs)


def test_a_missing_adapter_is_refused_unless_asked_for(heron, wren, tmp_path):
    finished(heron, tmp_path)
    modules = extended(heron, wren)
    with pytest.raises(UserError, match=r"lacks adapters\.@wren"):
        modules.restore(tmp_path)
    with pytest.raises(UserError, match="'heron' as new"):
        modules.restore(tmp_path, new=["heron"])
    with pytest.raises(UserError, match="'finch' as new"):
        modules.restore(tmp_path, new=["wren", "finch"])


@pytest.mark.parametrize("piece", ["encoder.mark", "adapters.@heron.scale"])
def test_only_the_new_adapter_may_be_missing(piece, heron, wren, tmp_path):
    finished(heron, tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    save_file({name: each for name, each in whole.items() if name != piece}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=f"lacks {piece}"):
        extended(heron, wren).restore(tmp_path, new=["wren"])
    save_file({**whole, "adapters.@wren.gain": torch.ones(())}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"holds adapters\.@wren\.gain"):
        extended(heron, wren).restore(tmp_path, new=["wren"])


def test_adapters_of_readers_that_are_not_loaded_survive_saving(heron, wren, tmp_path):
    both = extended(heron, wren)
    both.save(tmp_path / "both")
    alone = extended(heron, wren, {"wren": wren})
    with pytest.raises(UserError, match="no adapter for heron"):
        alone.save(tmp_path / "alone")
    alone.restore(tmp_path / "both")
    alone.save(tmp_path / "alone")
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("both", "alone"))
    assert first.keys() == second.keys()
    assert all(torch.equal(each, second[name]) for name, each in first.items())


def test_a_reader_without_anything_to_train_cannot_be_trained_alone(heron):
    modules = wire(heron, adapter=NativeConfig(), encoder=SelfConfig(rank=2))
    for name in ("heron", "wren"):
        with pytest.raises(UserError, match=f"found '{name}'"):
            modules.freeze_all_but(name)


def test_private_latents_are_shared_out_once_and_for_all(heron, wren, tmp_path):
    settings = {"encoder": {"kind": "bytes", "latents": 6, "width": 8, "heads": 2, "layers": 1}, "private": 1}
    wire(heron, adapter=EmbeddingsConfig(hidden=8), **settings).save(tmp_path)
    more = wire(heron, wren, adapter=EmbeddingsConfig(hidden=8), **settings)
    with pytest.raises(UserError, match="private: found a new reader"):
        more.restore(tmp_path, new=["wren"])


def test_a_saved_wire_is_evaluated_as_it_was_trained(heron, tmp_path):
    modules = finished(heron, tmp_path)
    bound = Latent(path=str(tmp_path)).bind(heron)
    prompts = [
        Prompt(context=c, question=q, unstable=0, tokens=1) for c, q in zip(CONTEXTS, QUESTIONS, strict=True)
    ]
    prefix = bound.deliver(bound.encode(CONTEXTS), prompts, heron)
    ours, theirs = [*prefix.memory.keys, *prefix.memory.values], delivered(modules, "heron")[3:]
    for mine, its in zip(ours, theirs, strict=True):  # adapters are added to the weights
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    heron.model.get_input_embeddings().weight.data[0] += 1
    with pytest.raises(UserError, match="other weights"):
        Latent(path=str(tmp_path)).bind(heron)

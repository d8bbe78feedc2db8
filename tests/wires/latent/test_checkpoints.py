"""A wire's checkpoint holds every piece, and one that does not is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.wires.latent.checkpoint import CONFIG, WEIGHTS
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.latent.modules import LatentModules, read_config
from latentwire.wires.latent.refine import RefinerConfig
from latentwire.wires.latent.select import LearnedSlots
from tests.support.latent_wires import ADAPTERS, PAIRS, delivered, encoder, named_lm, shaken, wire
from tests.support.models import tiny_lm, tiny_model, tiny_tokenizer


def again(modules: LatentModules, *lms: LM) -> LatentModules:
    """A fresh wire of the same configuration, with other numbers in every piece."""
    torch.manual_seed(1)
    return shaken(LatentModules(modules.config, {lm.name: lm for lm in lms}, lms[0]))


def changed(folder, **tensors):
    """Replace pieces in a saved wire; None takes one away."""
    found = {**load_file(folder / WEIGHTS), **{name.replace("__", "."): each for name, each in tensors.items()}}
    save_file({name: each for name, each in found.items() if each is not None}, folder / WEIGHTS)


@pytest.mark.parametrize(("encoded", "adapted"), PAIRS)
def test_what_is_delivered_after_loading_is_equal_to_the_bit(encoded, adapted, models, tmp_path):
    lm = tiny_lm()
    first = wire(lm, adapter=ADAPTERS[adapted], encoder=encoder(encoded, models))
    first.save(tmp_path / "wire")
    fresh = again(first, lm)
    pairs = zip(delivered(first, lm.name), delivered(fresh, lm.name), strict=True)
    assert not all(torch.equal(*pair) for pair in pairs)
    fresh.restore(tmp_path / "wire")
    for ours, theirs in zip(delivered(first, lm.name), delivered(fresh, lm.name), strict=True):
        assert torch.equal(ours, theirs)


CONFIGURATIONS = [
    ("anchors", "both", {"width": 8, "refiner": RefinerConfig(layers=1, heads=2)}),
    ("slots", "embeddings", {}),
    ("copied", "native", {}),
    ("tokens", "deep_prefix", {"private": 2}),
    ("bytes", "embeddings", {}),
    ("sentence", "deep_prefix", {}),
]


@pytest.mark.parametrize(("encoded", "adapted", "more"), CONFIGURATIONS)
def test_a_checkpoint_without_any_one_piece_is_refused(encoded, adapted, more, models, tmp_path):
    lm = tiny_lm()
    modules = wire(lm, adapter=ADAPTERS[adapted], encoder=encoder(encoded, models), **more)
    modules.save(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    assert whole.keys() == {name for name, each in modules.named_parameters() if each.requires_grad}
    fresh = again(modules, lm)
    before = {name: each.detach().clone() for name, each in fresh.pieces().items()}
    for name in whole:
        save_file({other: each for other, each in whole.items() if other != name}, tmp_path / WEIGHTS)
        with pytest.raises(UserError) as refused:
            fresh.restore(tmp_path)
        assert f"lacks {name}," in str(refused.value)
    assert all(torch.equal(each, before[name]) for name, each in fresh.pieces().items())


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (torch.zeros(3), r"found torch.float32 of shape \(3,\)"),
        (torch.full((32,), torch.nan), "not finite"),
        (torch.zeros(32, dtype=torch.int64), "found torch.int64"),
        (None, "lacks encoder.mark"),
    ],
)
def test_a_damaged_piece_is_refused(piece, said, models, tmp_path):
    lm = tiny_lm()
    modules = wire(lm, adapter=ADAPTERS["native"], encoder=encoder("anchors", models))
    modules.save(tmp_path)
    changed(tmp_path, encoder__mark=piece)
    with pytest.raises(UserError, match=said):
        modules.restore(tmp_path)


def test_an_unexpected_piece_is_refused(models, tmp_path):
    lm = tiny_lm()
    modules = wire(lm, adapter=ADAPTERS["native"], encoder=encoder("anchors", models))
    modules.save(tmp_path)
    changed(tmp_path, encoder__more=torch.zeros(1))
    with pytest.raises(UserError, match=r"holds encoder\.more"):
        modules.restore(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read"):
        modules.restore(tmp_path)
    with pytest.raises(UserError, match="expected the folder of a trained wire"):
        modules.restore(tmp_path / "nothing")


def test_a_wire_for_other_weights_is_refused(models, tmp_path):
    modules = wire(tiny_lm(), adapter=ADAPTERS["native"], encoder=encoder("anchors", models))
    modules.save(tmp_path)
    other = again(modules, tiny_lm(seed=1))
    with pytest.raises(UserError, match="other weights of llama"):
        other.restore(tmp_path)


@pytest.mark.parametrize("encoded", ["tokens", "sentence"])
def test_a_frozen_text_model_is_fingerprinted_and_not_saved(encoded, models, tmp_path):
    lm, place = tiny_lm(), tmp_path / "decoder"

    def put(seed):
        tiny_model(seed=seed).save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)

    put(0)
    settings = encoder(encoded, models).model_copy(update={"model": str(place)})
    modules = wire(lm, adapter=ADAPTERS["embeddings"], encoder=settings)
    modules.save(tmp_path / "wire")
    assert read_config(tmp_path / "wire").encoder.model == str(place)
    assert not any("self_attn" in name for name in load_file(tmp_path / "wire" / WEIGHTS))
    put(1)
    with pytest.raises(UserError, match="other weights of encoder"):
        again(modules, lm).restore(tmp_path / "wire")


def test_a_wire_saved_in_bfloat16_takes_half_the_bytes(models, tmp_path):
    lm = tiny_lm()
    modules = wire(lm, adapter=ADAPTERS["deep_prefix"], encoder=encoder("anchors", models))
    modules.save(tmp_path / "full")
    modules.save(tmp_path / "half", torch.bfloat16)
    full, half = load_file(tmp_path / "full" / WEIGHTS), load_file(tmp_path / "half" / WEIGHTS)
    assert all(torch.equal(half[name], each.bfloat16()) for name, each in full.items())
    fresh = again(modules, lm)
    fresh.restore(tmp_path / "half")
    assert all(torch.equal(each, full[name].bfloat16().float()) for name, each in fresh.pieces().items())
    fresh.save(tmp_path / "half_again", torch.bfloat16)
    assert (tmp_path / "half" / WEIGHTS).read_bytes() == (tmp_path / "half_again" / WEIGHTS).read_bytes()


def test_what_cannot_be_saved_leaves_the_old_wire_in_place(models, tmp_path):
    lm = tiny_lm()
    modules = wire(lm, adapter=ADAPTERS["native"], encoder=encoder("anchors", models))
    modules.save(tmp_path / "wire")
    old = (tmp_path / "wire" / WEIGHTS).read_bytes()
    with torch.no_grad():
        modules.encoder.mark[0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        modules.save(tmp_path / "wire")
    assert (tmp_path / "wire" / WEIGHTS).read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["wire"]


def test_frozen_pieces_are_saved_too(tmp_path):
    lm, other = named_lm("llama", "half"), named_lm("qwen3", "b.c")  # names that no module may have
    modules = wire(lm, other, adapter=ADAPTERS["deep_prefix"], encoder=SelfConfig(select=LearnedSlots(slots=4)))
    modules.requires_grad_(False)
    modules.save(tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == modules.pieces().keys()
    assert json.loads((tmp_path / CONFIG).read_text())["fingerprints"].keys() == {"half", "b.c"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bound_wire_has_adapters_of_its_models_dtype(dtype, tmp_path):
    """In bfloat16 rounding them moves latents less than it moves them that the model is in bfloat16 at all."""
    plain = tiny_lm()
    trained = wire(plain, adapter=ADAPTERS["native"], encoder=SelfConfig(rank=2))
    trained.save(tmp_path)
    lm = LM(tiny_model().to(dtype), tiny_tokenizer(), name=plain.name)
    before = LatentModules(trained.config, {lm.name: lm}, lm)
    before.restore(tmp_path)
    assert {each.dtype for each in before.encoder.adapters.parameters()} == {torch.float32}
    bound = Latent(path=str(tmp_path)).bind(lm).modules
    assert {each.dtype for each in bound.encoder.adapters.parameters()} == {dtype}
    exact, theirs, ours = (delivered(each, lm.name)[3:] for each in (trained, before.eval(), bound))
    if dtype == torch.float32:
        for mine, its in zip(ours, theirs, strict=True):  # adapters are added to the weights
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
        bound.save(tmp_path / "again")
        assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()
        return
    apart = [
        sum(float((a.float() - b.float()).square().sum()) for a, b in zip(left, right, strict=True))
        for left, right in ((ours, theirs), (theirs, exact), (exact, [0 * each for each in exact]))
    ]
    assert 0 < apart[0] < 1.5 * apart[1]
    assert apart[0] < 1e-3 * apart[2]
    with pytest.raises(UserError, match="rounded for reading"):
        bound.save(tmp_path / "again")

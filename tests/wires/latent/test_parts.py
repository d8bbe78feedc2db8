"""Every encoder before every adapter: it computes, it learns, and a context's latents are its own."""

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.wires.latent.adapters import DeepPrefixConfig, EmbeddingsConfig, NativeConfig
from latentwire.wires.latent.encoders import SelfConfig, TokensConfig
from latentwire.wires.latent.encoders.self_encoder import _mixed
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.refine import RefinerConfig
from latentwire.wires.latent.select import LearnedSlots
from tests.support.latent_wires import (
    ADAPTERS,
    CONTEXTS,
    ENCODERS,
    PAIRS,
    QUESTIONS,
    encoder,
    loss,
    one_by_one,
    wire,
)
from tests.support.models import tiny_lm, tiny_model, tiny_tokenizer


@pytest.mark.parametrize(("encoded", "adapted"), PAIRS)
def test_a_step_has_a_finite_loss_and_reaches_every_piece(encoded, adapted, models):
    lm = tiny_lm()
    lm.model.requires_grad_(False)
    modules = wire(lm, adapter=ADAPTERS[adapted], encoder=encoder(encoded, models)).train()
    found = loss(modules, lm)
    found.backward()
    assert torch.isfinite(found)
    still = [name for name, each in modules.pieces().items() if each.grad is None or not each.grad.any()]
    assert still == []
    assert all(torch.isfinite(each.grad).all() for each in modules.pieces().values())
    assert all(each.grad is None for each in lm.model.parameters())


@pytest.mark.parametrize(("encoded", "adapted"), [*((e, "deep_prefix") for e in ENCODERS), ("anchors", "both")])
def test_a_few_steps_bring_the_loss_down(encoded, adapted, models):
    lm = tiny_lm()
    lm.model.requires_grad_(False)
    modules = wire(lm, adapter=ADAPTERS[adapted], encoder=encoder(encoded, models)).train()
    optimizer = torch.optim.Adam(modules.trained().values(), lr=0.005)
    losses = []
    for _ in range(25):
        losses.append(loss(modules, lm))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < 0.7 * float(losses[0].detach())


@pytest.mark.parametrize("encoded", ENCODERS)
@pytest.mark.parametrize(
    "more", [{}, {"width": 8, "refiner": RefinerConfig(layers=1, heads=2)}], ids=["plain", "refined"]
)
@torch.no_grad()
def test_latents_depend_on_neither_batch_nor_order_nor_padding(encoded, more, models):
    modules = wire(tiny_lm(), adapter=EmbeddingsConfig(hidden=8), encoder=encoder(encoded, models), **more)
    one_by_one(modules)


@pytest.mark.parametrize("encoded", ENCODERS)
@torch.no_grad()
def test_different_contexts_have_different_latents(encoded, models):
    flat = wire(tiny_lm(), adapter=EmbeddingsConfig(hidden=8), encoder=encoder(encoded, models))(CONTEXTS).flat()
    assert (flat[0, 1] - flat[1, 1]).norm() > 1e-3 * flat[0, 1].norm()


@pytest.mark.parametrize("places", ["spread", "contiguous"])
@pytest.mark.parametrize("encoded", ["anchors", "slots", "tokens", "bytes", "sentence"])
@torch.no_grad()
def test_the_first_word_of_a_question_sees_every_latent(encoded, places, models):
    lm = tiny_lm()
    modules = wire(lm, adapter=DeepPrefixConfig(hidden=8), encoder=encoder(encoded, models), positions=places)
    latents = modules(CONTEXTS[:1])
    ask = [lm.format.after(QUESTIONS[0], lm)[:1]]

    def answer(latents: Latents) -> torch.Tensor:
        return lm.prefill(modules.deliver(latents, lm.name).ask(ask, lm)).logits

    whole = answer(latents)
    for at in range(latents.valid.shape[1]):
        changed = tuple(each.clone() for each in latents.tensors)
        for each in changed:
            each[..., at, :] = each[..., at, :].flip(-1) + 1
        assert (answer(latents.with_tensors(changed)) - whole).abs().max() > 1e-6


@torch.no_grad()
def test_a_pool_begins_as_neighbouring_spans(models):
    lm = tiny_lm()
    made = LatentModules(
        LatentConfig(source=lm.name, encoder=encoder("tokens", models), adapters={lm.name: EmbeddingsConfig()}),
        {lm.name: lm},
        lm,
    )
    flat = torch.nn.functional.normalize(made(CONTEXTS).flat(), dim=-1)
    assert (flat[0] @ flat[1].T).max() < 0.99  # queries drawn at random: 0.999 between any two contexts


@torch.no_grad()
def test_what_stands_before_the_context_is_an_option():
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(chat="<s>{% for m in messages %}user {{ m.content }}{% endfor %} model ")

    def ids(**options: object) -> list[int]:
        return wire(lm, adapter=NativeConfig(), encoder=SelfConfig(**options)).encoder._ids("The heron stood.")

    plain = ids()
    assert ids(bos=True) == [1, *plain]
    assert ids(bos=False) == plain
    assert lm.decode(ids(scaffold="chat")).strip() == "user The heron stood."
    assert ids(scaffold="chat")[0] == 1
    assert ids(scaffold="chat", bos=False) == ids(scaffold="chat")[1:]
    lm.tokenizer.bos_token = None
    with pytest.raises(UserError, match="bos: True"):
        ids(bos=True)


def test_a_copied_encoder_trains_without_the_reader():
    lm = tiny_lm()
    modules = wire(lm, adapter=NativeConfig(), encoder=SelfConfig(copied=True))
    names = set(modules.pieces())
    assert {f"encoder.copy.model.layers.0.self_attn.{each}_proj.weight" for each in "qkvo"} <= names
    assert not any("layers.2.mlp" in name or "lm_head" in name for name in names)  # nothing there reaches a key
    ours = {each.data_ptr() for each in modules.parameters()}
    assert not ours & {each.data_ptr() for each in lm.model.parameters()}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"private": 1}, "private: found 1"),
        ({"private": 9, "encoder": SelfConfig(select=LearnedSlots(slots=8))}, "private: found 9"),
        ({"encoder": {"kind": "bytes", "width": 10, "heads": 4}}, "width: found 10"),
    ],
)
def test_what_cannot_be_is_refused_in_words(config, said):
    with pytest.raises(ValueError, match=said):
        LatentConfig(**config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"refiner": RefinerConfig()}, "refiner: found latents of keys"),
        ({"refiner": RefinerConfig(heads=3), "width": 8}, "refiner: found 3 heads"),
        ({"width": 8}, "adapter: found native"),
        ({"encoder": TokensConfig(model="/nowhere/at/all")}, "encoder: found model"),
        ({"encoder": SelfConfig(scaffold="chat")}, "prompts: found template chat"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_wire_is_made(config, said):
    with pytest.raises(UserError, match=said):
        wire(tiny_lm(), adapter=NativeConfig(), **config)


def test_a_context_too_long_for_its_frozen_model_is_refused(models):
    modules = wire(tiny_lm(), adapter=EmbeddingsConfig(), encoder=encoder("tokens", models))
    with pytest.raises(UserError, match="expected 1 to 64"):
        modules(["word " * 100])


def test_a_bfloat16_reader_reads_what_float32_adapters_give(models):
    lm = LM(tiny_model().bfloat16().requires_grad_(False), tiny_tokenizer(), name="half")
    for adapter in ("embeddings", "both"):
        modules = wire(lm, adapter=ADAPTERS[adapter], encoder=encoder("anchors", models))
        loss(modules, lm).backward()
        assert all(each.dtype == torch.float32 and each.grad.any() for each in modules.pieces().values())


def test_layers_are_mixed_together_as_alone():
    """Those of other heads, as some models have, are mixed one by one."""
    torch.manual_seed(0)
    weights = torch.rand(2, 4, 5)
    for heads in ((2, 2, 2), (2, 1, 2)):
        columns = [torch.randn(2, count, 5, 3) for count in heads]
        for ours, each in zip(_mixed(weights, columns), columns, strict=True):
            torch.testing.assert_close(ours, torch.einsum("bmt,bhtd->bhmd", weights, each), rtol=1e-6, atol=1e-6)


def test_only_keys_and_values_of_the_layers_asked_for_cross():
    """Of three layers the last one is the upper half: below it lie at least half of them."""
    lm = tiny_lm(num_hidden_layers=3)
    sent = {}
    for layers in (None, "upper", (0, -1)):
        settings = SelfConfig(rank=0, marks=False, gives="both", layers=layers)
        with torch.no_grad():
            sent[layers] = settings.build(lm)(CONTEXTS)
    whole = sent[None]
    for layers, expected in (("upper", (2,)), ((0, -1), (0, 2))):
        found = sent[layers]
        assert torch.equal(found.vectors, whole.vectors)
        for keys, every in ((found.keys, whole.keys), (found.values, whole.values)):
            assert len(keys) == len(expected)
            assert all(torch.equal(each, every[layer]) for each, layer in zip(keys, expected, strict=True))
    with pytest.raises(UserError, match=r"layers: found 3, expected one of the model's 3 layers"):
        SelfConfig(layers=(3,)).build(lm)
    for order in ((2, 1, 0), (0, 0), (0, -3)):  # a reader's layer would get another layer's keys
        with pytest.raises(UserError, match=r"layers: found .*, expected ascending ones"):
            SelfConfig(layers=order).build(lm)
    with pytest.raises(ValueError, match="layers: found them beside gives: vectors"):
        SelfConfig(layers="upper", gives="vectors")
    with pytest.raises(UserError, match=r"found native for \(1, 2, 8\) layers"):
        wire(lm, adapter=NativeConfig(), encoder=SelfConfig(rank=2, layers="upper"))

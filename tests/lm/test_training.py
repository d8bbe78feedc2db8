"""Gradients: two passes a step with masks of their own, under activation checkpointing too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import latentwire
from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.reading import Columns, LayerRange, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows
from tests.lm.test_masks import batch, block_ids, close
from tests.support.dense import dense, numbers, stock
from tests.support.models import FAMILIES, tiny_lm, tiny_model, tiny_tokenizer

PROMPTS = [numbers(9, 1), numbers(6, 2)]
ANSWERS = pad_rows([numbers(4, 3), numbers(2, 4)], -100)


def checkpointed(lm: LM) -> LM:
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.model.train()
    return lm


def prefix(mask: str, layers: LayerRange | None = None) -> Prefix:
    return Prefix.of_tokens(PROMPTS, [block_ids(mask, len(p)) for p in PROMPTS], layers=layers)


def two_passes(lm: LM) -> dict[str, Tensor]:
    """Gradients of a loss over a student and a teacher pass, with different masks, one backward."""
    lm.model.zero_grad()
    student = lm.forced(prefix("prefix"), ANSWERS)
    teacher = lm.forced(prefix("causal", LayerRange(0, 1)), ANSWERS)
    real = ANSWERS != -100
    loss = torch.nn.functional.cross_entropy(lm.head(student.hidden).flatten(0, 1), ANSWERS.flatten())
    loss = loss + (student.hidden - teacher.hidden)[real].square().mean()
    loss.backward()
    return {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}


def equal(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert ours.keys() == reference.keys()
    assert len(ours) > 5
    for name, gradient in reference.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_two_passes_under_checkpointing_have_the_same_gradients(family: str) -> None:
    equal(two_passes(checkpointed(tiny_lm(family))), two_passes(tiny_lm(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_pass_and_a_reader_pass_train_together(family: str) -> None:
    """The reader's prefix is what the encoder said: gradients run through both, under two masks."""

    def gradients(encoder: LM, reader: LM) -> dict[str, Tensor]:
        columns = prefix("prefix").columns
        ids = prefix("prefix").ids
        assert ids is not None
        message = encoder.run(ids, columns, Reading(columns))
        packed = Prefix(embeddings=message, columns=Columns.of(columns.valid, columns.positions))
        forced = reader.forced(packed, ANSWERS)
        torch.nn.functional.cross_entropy(reader.head(forced.hidden).flatten(0, 1), ANSWERS.flatten()).backward()
        return {
            f"{who}.{n}": p.grad
            for who, lm in (("encoder", encoder), ("reader", reader))
            for n, p in lm.model.named_parameters()
            if p.grad is not None
        }

    ours = gradients(checkpointed(tiny_lm(family, seed=1)), checkpointed(tiny_lm(family)))
    equal(ours, gradients(tiny_lm(family, seed=1), tiny_lm(family)))
    assert any(name.startswith("encoder") and g.abs().max() > 1e-6 for name, g in ours.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_the_dense_reference(family: str) -> None:
    lm = checkpointed(tiny_lm(family))
    ids, rows = batch("segments", "left")
    from tests.support.dense import columns_of

    columns = columns_of(rows)
    weights = torch.randn(*ids.shape, 32, generator=torch.Generator().manual_seed(0)) * columns.valid[..., None]
    (lm.run(ids, columns, Reading(columns)) * weights).sum().backward()
    plain = stock(tiny_model(family))
    (dense(plain, ids, rows, hidden=True) * weights).sum().backward()
    ours = dict(lm.model.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            gradient = ours[name].grad
            assert gradient is not None
            torch.testing.assert_close(gradient, parameter.grad, atol=2e-4, rtol=1e-3)


def test_every_answer_token_is_trained_on_and_no_more() -> None:
    lm = tiny_lm()
    forced = lm.forced(prefix("prefix"), ANSWERS)
    assert forced.hidden.shape == (2, 4, 32)
    assert torch.equal(forced.labels, ANSWERS)
    one = lm.forced(prefix("prefix"), ANSWERS[:, :1])
    close(one.hidden, forced.hidden[:, :1])


def test_a_frozen_reader_passes_gradients_to_its_prefix() -> None:
    lm = checkpointed(tiny_lm())
    lm.model.requires_grad_(False)
    ids = prefix("prefix").ids
    assert ids is not None
    vectors = lm.embed(ids).detach().requires_grad_()
    lm.forced(Prefix(embeddings=vectors, columns=prefix("prefix").columns), ANSWERS).hidden.sum().backward()
    assert vectors.grad is not None
    real = prefix("prefix").columns.valid
    assert (vectors.grad[real].abs().amax(-1) > 0).all()
    assert (vectors.grad[~real] == 0).all()


# In the middle of training one also prefills, scores and generates.


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prefill_in_training_mode_reads_as_in_evaluation(family: str) -> None:
    """Under activation checkpointing layers in training mode keep no cache, and dropout would be on."""
    calm, lm = tiny_lm(family), checkpointed(tiny_lm(family, attention_dropout=0.5))
    lm.model.get_decoder().layers[0].eval()
    modes = [module.training for module in lm.model.modules()]
    how = Decoding(max_new_tokens=6, min_new_tokens=6)
    ours, reference = lm.prefill(prefix("prefix")), calm.prefill(prefix("prefix"))
    assert torch.equal(ours.logits, reference.logits)
    assert lm.generate(ours, how) == calm.generate(reference, how)
    answers = [[numbers(3, 8)], [numbers(2, 9)]]
    assert lm.score(ours, answers) == calm.score(reference, answers)
    assert modes == [module.training for module in lm.model.modules()]


def test_a_model_in_training_mode_can_be_wrapped() -> None:
    model = tiny_model(attention_dropout=0.5).train()
    lm = LM(model, tiny_tokenizer())
    assert all(module.training for module in model.modules())
    _ = lm.rotary


# The same promises around anyone's own training step.


def own_step(model: Any, ids: Tensor, lengths: list[int], *, inside: bool) -> Tensor:
    """A loss over everything after the prompt, with the forward in the `with` block."""
    labels = ids.clone()
    for n, length in enumerate(lengths):
        labels[n, :length] = -100
    with latentwire.blocks(model, lengths):
        loss: Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_around_a_training_step_with_the_backward_outside(family: str) -> None:
    ids = torch.tensor([numbers(11, 1), numbers(11, 2)])
    lengths = [7, 4]
    found = []
    for checkpointing in (False, True):
        for inside in (False, True):
            model = tiny_model(family)
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
            own_step(model, ids, lengths, inside=inside)
            found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for other in found[1:]:
        equal(other, found[0])
    lm = tiny_lm(family)
    prefixes = Prefix.of_tokens(
        [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)], [[0] * n for n in lengths]
    )
    answers = pad_rows([row[n:] for row, n in zip(ids.tolist(), lengths, strict=True)], -100)
    forced = lm.forced(prefixes, answers)
    torch.nn.functional.cross_entropy(lm.head(forced.hidden).flatten(0, 1), answers.flatten()).backward()
    equal(found[0], {n: p.grad for n, p in lm.model.named_parameters() if p.grad is not None})


def test_two_steps_of_blocks_with_one_backward() -> None:
    """Two `with` blocks on one model, checkpointed, and a single backward after both."""
    first, second = torch.tensor([numbers(9, 1)]), torch.tensor([numbers(9, 2)])

    def gradients(model: Any) -> dict[str, Tensor]:
        with latentwire.blocks(model, [6]):
            one = model(input_ids=first, labels=first, use_cache=False).loss
        with latentwire.blocks(model, [2], layers=(1, 2)):
            two = model(input_ids=second, labels=second, use_cache=False).loss
        plain = model(input_ids=first, labels=first, use_cache=False).loss
        (one + two + plain).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    model = tiny_model()
    reference = gradients(copy.deepcopy(model))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    equal(gradients(model.train()), reference)

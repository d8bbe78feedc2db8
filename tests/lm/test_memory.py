"""Keys and values before the tokens give the same logits as reading the text they came from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from latentwire import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.reading import Columns, LayerRange, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows
from tests.lm.test_masks import block_ids, close
from tests.support.dense import Layout, dense, layouts, numbers, rotated, stock
from tests.support.models import FAMILIES, tiny_lm, tiny_model

CONTEXTS = [numbers(9, 1), numbers(4, 2), numbers(7, 3)]
QUESTIONS = [numbers(5, 4), numbers(8, 5), numbers(3, 6)]
ANSWERS = [numbers(3, 7), numbers(5, 8), numbers(1, 9)]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


def unrotated(lm: LM, prefix: Prefix) -> Memory:
    """What a prefill of `prefix` leaves behind, keys turned back."""
    layers = lm.prefill(prefix).cache.layers
    positions = prefix.columns.positions
    keys = tuple(lm.rotary.rotate(n, layer.keys, positions, back=True) for n, layer in enumerate(layers))
    return Memory(keys, tuple(layer.values for layer in layers), prefix.columns)


def after(lm: LM, mask: str, layers: LayerRange | None = None) -> Prefix:
    """Contexts of several lengths as right-padded memory, questions of several lengths after them."""
    memory = unrotated(lm, Prefix.of_tokens(CONTEXTS))
    questions = Prefix.of_tokens(QUESTIONS, [block_ids(mask, len(q)) for q in QUESTIONS])
    start = memory.columns.end[:, None]
    columns = questions.columns
    moved = Columns(columns.valid, columns.positions + start, columns.blocks, columns.documents)
    return Prefix(ids=questions.ids, columns=moved, memory=memory, layers=layers)


def as_text(mask: str) -> Prefix:
    """The same contexts and questions as plain tokens."""
    pairs = list(zip(CONTEXTS, QUESTIONS, strict=True))
    return Prefix.of_tokens([c + q for c, q in pairs], [[-1] * len(c) + block_ids(mask, len(q)) for c, q in pairs])


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@torch.no_grad()
def test_memory_of_a_causal_prefill_equals_plain_text(lm: LM, mask: str) -> None:
    memory, text = after(lm, mask), as_text(mask)
    ours, reference = lm.prefill(memory), lm.prefill(text)
    close(ours.logits, reference.logits)
    assert torch.equal(ours.next_position, reference.next_position)
    close(
        ours.logits[1:2],
        dense(stock(lm.model), text.select(torch.tensor([1])).ids, layouts(text.columns)[1:2])[:, 11],
    )
    answers = pad_rows(ANSWERS, -100)
    real = answers != -100
    close(lm.forced(memory, answers).hidden, lm.forced(text, answers).hidden, real)
    for left, right in zip(
        lm.score(ours, [[a, a[:1]] for a in ANSWERS]),
        lm.score(reference, [[a, a[:1]] for a in ANSWERS]),
        strict=True,
    ):
        assert [s.logprob for s in left] == pytest.approx([s.logprob for s in right], abs=1e-4)
    how = Decoding(max_new_tokens=7, min_new_tokens=7)
    assert lm.generate(ours, how) == lm.generate(reference, how)


@torch.no_grad()
def test_keys_of_a_memory_are_rotated_by_their_positions(lm: LM) -> None:
    """Keys taken at one place and put at another are the keys of that place: only distances matter."""
    near = after(lm, "prefix")
    assert near.memory is not None
    shift = 17

    def move(columns: Columns) -> Columns:
        return Columns(columns.valid, columns.positions + shift, columns.blocks, columns.documents)

    memory = Memory(near.memory.keys, near.memory.values, move(near.memory.columns))
    far = Prefix(ids=near.ids, columns=move(near.columns), memory=memory)
    close(lm.prefill(far).logits, lm.prefill(near).logits)
    turned_only_half = Memory(near.memory.keys, near.memory.values, near.memory.columns)
    wrong = Prefix(ids=near.ids, columns=move(near.columns), memory=turned_only_half)
    assert (lm.prefill(wrong).logits - lm.prefill(near).logits).abs().max() > 1e-2


@torch.no_grad()
def test_padding_in_a_memory_changes_nothing(lm: LM) -> None:
    prefix = after(lm, "prefix")
    assert prefix.memory is not None
    keys = tuple(key.clone() for key in prefix.memory.keys)
    values = tuple(value.clone() for value in prefix.memory.values)
    for tensor in (*keys, *values):
        tensor[1, :, 4:] = 1e3
    other = Prefix(ids=prefix.ids, columns=prefix.columns, memory=Memory(keys, values, prefix.memory.columns))
    assert torch.equal(lm.prefill(other).logits, lm.prefill(prefix).logits)
    for n in range(3):
        close(lm.prefill(prefix.select(torch.tensor([n]))).logits[0], lm.prefill(prefix).logits[n])


@torch.no_grad()
def test_blocks_documents_and_layer_ranges_apply_to_memory_columns(lm: LM) -> None:
    """Memory columns have blocks, documents and ranges of their own, as any other column."""
    prefix = after(lm, "prefix", LayerRange(1, 2))
    assert prefix.memory is not None
    assert prefix.ids is not None
    there = prefix.memory.columns
    # The memory is of the block of the questions (which stand after it: seen anyway) and of two documents.
    documents = torch.arange(there.width).expand_as(there.positions) % 2
    memory = Memory(
        prefix.memory.keys, prefix.memory.values, Columns(there.valid, there.positions, there.blocks, documents)
    )
    own = Columns(
        prefix.columns.valid,
        prefix.columns.positions,
        prefix.columns.blocks,
        torch.ones_like(prefix.columns.positions),
    )
    ours = lm.prefill(Prefix(ids=prefix.ids, columns=own, memory=memory, layers=prefix.layers)).logits
    reference, _ = with_cache(lm, memory, own, prefix.ids, range(1, 2))
    at = torch.tensor([len(q) - 1 for q in QUESTIONS])
    close(ours, reference[torch.arange(3), at])


def with_cache(
    lm: LM, memory: Memory, columns: Columns, ids: Tensor, layers: range | None, hidden: bool = False
) -> tuple[Tensor, list[Layout]]:
    """The dense reference over memory: keys rotated by the family's own code, in a stock cache."""
    plain = stock(lm.model)
    cache = DynamicCache()
    for n, (key, value) in enumerate(zip(memory.keys, memory.values, strict=True)):
        cache.update(rotated(plain, n, key, memory.columns.positions), value, n)
    rows = layouts(memory.columns.append(columns))
    for row in rows:
        row.memory = memory.columns.width
    return dense(plain, ids, rows, layers=layers, cache=cache, hidden=hidden), rows


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_memory_as_in_the_dense_reference(lm: LM, checkpointing: bool) -> None:
    prefix = after(lm, "prefix")
    assert prefix.memory is not None
    assert prefix.ids is not None
    there = prefix.memory
    leaves = [t.clone().requires_grad_() for t in (*there.keys, *there.values)]
    depth = len(there.keys)
    memory = Memory(tuple(leaves[:depth]), tuple(leaves[depth:]), there.columns)
    answers = pad_rows(ANSWERS, -100)
    real = answers != -100
    weights = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)) * real[..., None]

    reader = LM(tiny_model(lm.name), lm.tokenizer)
    if checkpointing:
        reader.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        reader.model.train()
    forced = reader.forced(Prefix(ids=prefix.ids, columns=prefix.columns, memory=memory), answers)
    ours = torch.autograd.grad((forced.hidden * weights).sum(), leaves)

    steps = torch.arange(4).expand(3, 4)
    read = real[:, 1:]
    columns = prefix.columns.append(Columns.of(read, prefix.next_position[:, None] + steps))
    ids = torch.cat([prefix.ids, answers[:, :-1].clamp_min(0)], 1)
    states, _ = with_cache(lm, memory, columns, ids, None, hidden=True)
    total = sum(
        (states[n, at] * weights[n, k]).sum()
        for n in range(3)
        for k in range(len(ANSWERS[n]))
        for at in [len(QUESTIONS[n]) - 1 if k == 0 else 8 + k - 1]
    )
    reference = torch.autograd.grad(total, leaves)  # type: ignore[arg-type]
    for left, right in zip(ours, reference, strict=True):
        assert right.abs().max() > 1e-3
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
    assert all((g[1, :, 4:] == 0).all() for g in ours), "padding of a memory gets no gradient"


@torch.no_grad()
def test_unrotating_gives_the_keys_back_from_any_position(lm: LM) -> None:
    keys = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [90, 3, 77, 0, 12, 100]])
    for layer in range(3):
        turned = lm.rotary.rotate(layer, keys, positions)
        close(turned, rotated(stock(lm.model), layer, keys, positions))
        close(lm.rotary.rotate(layer, turned, positions, back=True), keys)


@torch.no_grad()
def test_rotating_all_layers_at_once_equals_rotating_each_alone(lm: LM) -> None:
    keys = [torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(layer)) for layer in range(3)]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [90, 3, 77, 0, 12, 100]])
    for back in (False, True):
        found = lm.rotary.rotate_all(keys, positions, back=back)
        for layer, key in enumerate(keys):
            assert torch.equal(found[layer], lm.rotary.rotate(layer, key, positions, back=back))


@torch.no_grad()
def test_scaled_rotations_are_undone_exactly() -> None:
    """YaRN scales cosine and sine: un-rotating divides by it."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    lm = tiny_lm("llama", rope_parameters=yarn)
    assert float(lm.rotary._angles(0, torch.tensor([[0]]), torch.zeros(1, 1, 1, 8))[0].max()) > 1.01  # type: ignore[index]
    close(lm.prefill(after(lm, "prefix")).logits, lm.prefill(as_text("prefix")).logits)


@pytest.mark.parametrize("family", ["glm", "smollm3"])
def test_rotations_that_cannot_be_undone_are_refused(family: str) -> None:
    """Interleaved channels, and layers without any rotation between others with one."""
    lm = tiny_lm(family)
    lm.prefill(Prefix.of_tokens(QUESTIONS))  # tokens are no trouble
    with pytest.raises(UserError, match="rotates keys in a way not known here") as error:
        _ = lm.rotary
    assert "\n" not in str(error.value)


def test_a_memory_of_another_depth_is_refused(lm: LM) -> None:
    prefix = after(lm, "causal")
    assert prefix.memory is not None
    short = Memory(prefix.memory.keys[:2], prefix.memory.values[:2], prefix.memory.columns)
    with pytest.raises(ValueError, match="memory holds 2 layers"):
        lm.prefill(Prefix(ids=prefix.ids, columns=prefix.columns, memory=short))

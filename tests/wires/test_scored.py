"""Wires that score the columns of a context and keep the best."""

from __future__ import annotations

import pytest
import torch

from latentwire import wires
from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.attended import attended
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt
from latentwire.wires import ScoredWire
from tests.support.models import tiny_lm

CONTEXTS = [
    "Ada lives in the old town by the river.",
    "The heron stood.",
    "a",
    "",
    "one two three four five six seven",
]
PROMPTS = [Prompt(context=context, question="Who?") for context in CONTEXTS]
FAMILIES = ("llama", "qwen3", "gemma3", "mistral")


class KeyNorm(ScoredWire):
    """Keeps the keys of smallest norm (Devoto et al., 2406.11430)."""

    def score(self, lm, prefix):
        return [-keys.norm(dim=-1) for keys in self.memory(lm, prefix).keys]


class Last(ScoredWire):
    """Keeps the last columns, the same in every head."""

    def score(self, lm, prefix):
        position = prefix.columns.positions[:, None].float()
        return [position] * len(self.memory(lm, prefix).keys)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def even(length, ratio, tokens):
    """Columns that are kept of `length`, evenly spread, written out."""
    if ratio is None:
        count = min(tokens, length)
        return [round(n * (length - 1) / max(count - 1, 1)) for n in range(count)]
    if ratio == 1:
        return list(range(length))
    return [0, *(min(end, length - 1) for end in range(ratio, length - 1 + ratio, ratio))] if length else []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [{"ratio": 1}, {"ratio": 3}, {"tokens": 3}])
def test_nth_sends_the_evenly_spread_keys_and_values_to_the_bit(family, size):
    lm = tiny_lm(family)
    rows = [lm.format.before(context, lm) for context in CONTEXTS]
    memory = lm.memorize(Prefix.of_tokens(rows))[1]
    latents = wires.parse("nth," + ",".join(f"{k}={v}" for k, v in size.items())).bind(lm).encode(CONTEXTS)
    for n, row in enumerate(rows):
        columns = even(len(row), size.get("ratio"), size.get("tokens"))
        there = latents.valid[n]
        assert latents.positions[n][there].tolist() == columns
        for kept, own in ((latents.keys, memory.keys), (latents.values, memory.values)):
            assert all(torch.equal(k[n][:, there], o[n][:, columns]) for k, o in zip(kept, own, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [{"ratio": 3}, {"tokens": 3}])
def test_evict_sends_each_heads_most_attended_keys_and_values_to_the_bit(family, size):
    lm = tiny_lm(family)
    rows = [lm.format.before(context, lm) for context in CONTEXTS]
    line_break = lm.tokenizer("\n", add_special_tokens=False)["input_ids"]
    prefix = Prefix.of_tokens([r + line_break + r[int(r[:1] == [lm.tokenizer.bos_token_id]) :] for r in rows])
    lengths = torch.tensor([[len(row)] for row in rows])
    second = torch.arange(prefix.columns.width) >= lengths
    memory, received = attended(lm, prefix, prefix.columns.valid & second)
    latents = wires.parse("evict," + ",".join(f"{k}={v}" for k, v in size.items())).bind(lm).encode(CONTEXTS)
    for layer, weights in enumerate(received):
        for n, row in enumerate(rows):
            places = even(len(row), size.get("ratio"), size.get("tokens"))
            for head in range(weights.shape[1]):
                order = sorted(range(len(row)), key=lambda at: (-float(weights[n, head, at]), at))
                chosen = torch.tensor(sorted(order[: len(places)]), dtype=torch.long)
                there = latents.valid[n]
                assert torch.equal(latents.values[layer][n, head, there], memory.values[layer][n, head, chosen])
                keys = memory.keys[layer][n, head, chosen][None, None]
                turned = lm.rotary.rotate(layer, keys, chosen[None])
                turned = lm.rotary.rotate(layer, turned, torch.tensor([places], dtype=torch.long), back=True)
                assert torch.equal(latents.keys[layer][n, head, there], turned[0, 0])


def test_a_score_of_three_lines_is_a_wire(lm):
    latents = KeyNorm(tokens=2).bind(lm).encode(CONTEXTS[:1])
    row = lm.format.before(CONTEXTS[0], lm)
    memory = lm.memorize(Prefix.of_tokens([row]))[1]
    for layer, keys in enumerate(memory.keys):
        smallest = keys[0].norm(dim=-1).topk(2, largest=False).indices.sort().values
        for head, columns in enumerate(smallest):
            assert torch.equal(latents.values[layer][0, head], memory.values[layer][0, head, columns])


def test_one_score_for_all_heads_keeps_the_same_columns_in_each(lm):
    latents = Last(tokens=2).bind(lm).encode(CONTEXTS[:1])
    memory = lm.memorize(Prefix.of_tokens([lm.format.before(CONTEXTS[0], lm)]))[1]
    assert all(torch.equal(k, o[:, :, -2:]) for k, o in zip(latents.values, memory.values, strict=True))


@pytest.mark.parametrize("wire", [KeyNorm, Last])
def test_a_method_reads_its_context_once(lm, wire, monkeypatch):
    bound = wire(ratio=2).bind(lm)
    calls, memorize = [], type(lm).memorize
    monkeypatch.setattr(type(lm), "memorize", lambda *how, **also: calls.append(1) or memorize(*how, **also))
    bound.encode(CONTEXTS)
    assert len(calls) == 1


@pytest.mark.parametrize("size", ["ratio=3", "tokens=3"])
def test_heads_share_a_layers_budget_and_each_keeps_some(lm, size):
    uniform = wires.parse(f"evict,{size}").bind(lm).encode(CONTEXTS)
    shared = wires.parse(f"evict,{size},budget=head").bind(lm).encode(CONTEXTS)
    count = uniform.valid.sum(1)
    for heads in shared.heads:
        each = heads.sum(2)
        assert each.sum(1).tolist() == (count * heads.shape[1]).tolist()
        assert bool((each >= (count[:, None] + 4) // 5).all())
    assert any(len(set(row)) > 1 for heads in shared.heads for row in heads.sum(2).tolist())
    assert shared.nbytes() == uniform.nbytes()


def test_heads_that_score_alike_share_evenly(lm):
    uniform, shared = Last(ratio=3).bind(lm), Last(ratio=3, budget="head").bind(lm)
    ours, theirs = (lm.prefill(wire(PROMPTS, lm)).logits for wire in (shared, uniform))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_column_that_a_head_lacks_is_as_good_as_gone(kernel):
    """Hidden from every head, a column may hold anything; hidden from one, it changes that head alone."""
    lm = tiny_lm(kernel=kernel)
    bound = wires.parse("evict,ratio=2,budget=head").bind(lm)
    prefix = bound(PROMPTS[:1], lm)
    before = lm.prefill(prefix).logits
    memory, changed = prefix.memory, 0
    for layer, heads in enumerate(memory.heads):
        hidden = ~heads
        changed += int(hidden.sum())
        memory.keys[layer][hidden] = 7.0
        memory.values[layer][hidden] = -7.0
    assert changed
    assert torch.equal(lm.prefill(prefix).logits, before)
    memory.values[0][memory.heads[0]] += 1.0
    assert not torch.equal(lm.prefill(prefix).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_heads_write_the_same_text_alone_in_a_batch_and_in_one_pass(family):
    lm = tiny_lm(family)
    bound = wires.parse("evict,ratio=3,budget=head").bind(lm)
    how = Decoding(max_new_tokens=8)
    prefix = bound(PROMPTS, lm)
    together = lm.generate(lm.prefill(prefix), how)
    queued = lm.generate_all([bound([prompt], lm) for prompt in PROMPTS], how, rows=2)
    for n, prompt in enumerate(PROMPTS):
        alone = bound([prompt], lm)
        [text] = lm.generate(lm.prefill(alone), how)
        assert text.ids == together[n].ids == queued[n].ids
        hidden = lm.forced(alone, torch.tensor([text.ids])).hidden
        assert lm.head(hidden)[0].argmax(-1).tolist() == list(text.ids)

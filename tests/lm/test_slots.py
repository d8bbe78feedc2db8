"""Decoding in slots: the same tokens as with a cache that grows, whatever stands beside and before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from latentwire.lm.decoding import Decoding
from latentwire.lm.decoding.decode_step import advance, bucket
from latentwire.lm.decoding.engine import Engine, fingerprint, unfit
from latentwire.lm.decoding.open_text import OpenText
from latentwire.lm.decoding.slots import Slots
from latentwire.lm.masks.reading import Columns, LayerRange, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefilled, Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm

LENGTHS = [9, 5, 12, 3, 17, 7, 1, 10, 4]
ROWS = [numbers(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


@pytest.fixture(scope="module")
def llama() -> LM:
    return tiny_lm("llama")


def slowly(lm: LM, prefilled: Prefilled, steps: int) -> list[list[int]]:
    """Greedy decoding without slots: one column appended to a growing cache for every token."""
    said: list[Tensor] = []
    state, logits = prefilled, prefilled.logits
    for _ in range(steps):
        banned = torch.tensor(sorted(lm.eos_ids))
        said.append(logits.index_fill(1, banned, -torch.inf).argmax(-1))
        state = lm.append(state, said[-1][:, None])
        logits = state.logits
    return torch.stack(said, 1).tolist()


def prefixes(lm: LM) -> dict[str, Prefix]:
    """One of every kind, each with padding inside or after its rows."""
    ids = Prefix.of_tokens(ROWS[:3])
    holes = torch.rand(ids.columns.valid.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    holes[:, 0] = False
    gaps = replace(ids.columns, valid=ids.columns.valid & ~holes, positions=ids.columns.positions * 2)
    documents = torch.where(ids.columns.positions < 4, 0, -1)
    size = lm.model.get_input_embeddings().weight.shape[1]
    shape = lm.prefill(ids).cache.layers[0].keys.shape
    generator = torch.Generator().manual_seed(1)
    layers = lm.model.config.num_hidden_layers
    pairs = [torch.randn(3, shape[1], 4, shape[3], generator=generator) for _ in range(2 * layers)]
    seen = torch.tensor([[True, True, False, True], [False, True, True, False], [True] * 4])
    memory = Memory(tuple(pairs[:layers]), tuple(pairs[layers:]), Columns.of(seen, torch.arange(4).expand(3, -1)))
    after = replace(ids.columns, positions=ids.columns.positions + 4)
    return {
        "tokens": ids,
        "holes": replace(ids, columns=gaps),
        "blocks": Prefix.of_tokens(ROWS[:3], [[0] * len(row) for row in ROWS[:3]], layers=LayerRange(0, 2)),
        "documents": replace(ids, columns=replace(ids.columns, documents=documents)),
        "embeddings": Prefix(embeddings=torch.randn(3, 12, size, generator=generator), columns=ids.columns),
        "memory": replace(ids, columns=after, memory=memory),
    }


KINDS = ("tokens", "holes", "blocks", "documents", "embeddings", "memory")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_prefix_is_continued_as_without_slots(lm: LM, kind: str) -> None:
    prefilled = lm.prefill(prefixes(lm)[kind])
    before = [layer.keys.clone() for layer in prefilled.cache.layers]
    expected = slowly(lm, prefilled, 14)
    made = lm.generate(prefilled, Decoding(max_new_tokens=14, min_new_tokens=14))
    assert [list(text.ids) for text in made] == expected
    for layer, keys in zip(prefilled.cache.layers, before, strict=True):  # and the prefill is as it was
        assert torch.equal(layer.keys, keys)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 9},
    "held": {"max_new_tokens": 12, "min_new_tokens": 4},
    "stop": {"max_new_tokens": 12, "min_new_tokens": 12, "stop": ("e", "it=", "5")},
    "sampled": {"max_new_tokens": 9, "temperature": 1.0, "top_p": 0.9},
    "first": {"max_new_tokens": 6, "first_temperature": 2.0},
}


@pytest.mark.parametrize("how", SETTINGS)
def test_a_queue_gives_each_prompt_what_it_gets_alone(lm: LM, how: str) -> None:
    other = tiny_lm(lm.name)
    free = other.generate(other.prefill(Prefix.of_tokens(ROWS[:1])), Decoding(max_new_tokens=6, min_new_tokens=6))
    other.model.generation_config.eos_token_id = [free[0].ids[4], 2]  # so that some texts end early
    decoding = Decoding(**SETTINGS[how])
    singles = [Prefix.of_tokens([row]) for row in ROWS]
    alone = [other.generate(other.prefill(p), decoding, [n])[0] for n, p in enumerate(singles)]
    together = Prefix.of_tokens(ROWS)
    for rows in (2, 5):
        assert other.generate_all(iter(singles), decoding, rows=rows) == alone
        assert other.generate_all([together], decoding, range(len(ROWS)), rows) == alone


def test_a_queue_takes_prefixes_of_every_kind(lm: LM) -> None:
    decoding = Decoding(max_new_tokens=7, min_new_tokens=7)
    every = list(prefixes(lm).values())
    expected = [text for prefix in every for text in lm.generate(lm.prefill(prefix), decoding)]
    assert lm.generate_all(every, decoding, rows=2) == expected
    assert lm.generate_all(every[::-1], decoding, rows=5) == [
        text for n in range(len(every))[::-1] for text in expected[3 * n : 3 * n + 3]
    ]


def test_a_queue_reads_its_prompts_only_as_rows_become_free(llama: LM) -> None:
    asked: list[int] = []

    def prompts() -> Any:
        for n, row in enumerate(ROWS):
            asked.append(n)
            yield Prefix.of_tokens([row])

    seen: list[int] = []
    prefill = llama.prefill

    def watched(prefix: Prefix) -> Prefilled:
        seen.append(len(asked))
        return prefill(prefix)

    llama.prefill = watched  # type: ignore[method-assign]
    try:
        llama.generate_all(prompts(), Decoding(max_new_tokens=4, min_new_tokens=4), rows=2)
    finally:
        del llama.prefill
    assert seen == [2, 4, 6, 8, 9]


def test_an_empty_queue_and_wrong_numbers(llama: LM) -> None:
    assert llama.generate_all([]) == []
    with pytest.raises(ValueError, match="rows: found 0, expected >= 1"):
        llama.generate_all([], rows=0)
    with pytest.raises(ValueError, match="seeds: found 0, expected one for each row"):
        llama.generate_all([Prefix.of_tokens(ROWS[:2])], seeds=[1])


def test_slots_grow_while_others_write(llama: LM) -> None:
    """A prompt longer than the slots finds room, and the rows beside it go on as if nothing had happened."""
    decoding = Decoding(max_new_tokens=10, min_new_tokens=10)
    rows = [numbers(n, n) for n in (3, 4, 40, 5, 90, 6)]
    alone = [llama.generate(llama.prefill(Prefix.of_tokens([row])), decoding)[0] for row in rows]
    assert llama.generate_all([Prefix.of_tokens([row]) for row in rows], decoding, rows=2) == alone


@pytest.mark.slow
def test_a_step_compiles_whole_and_once_for_prompts_of_all_lengths(lm: LM) -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(advance, fullgraph=True, dynamic=False, backend=count)
    eos = torch.tensor(sorted(lm.eos_ids))
    with torch.no_grad():
        for rows in (ROWS[:2], ROWS[2:4], ROWS[4:6]):
            prefilled = lm.prefill(Prefix.of_tokens(rows))
            slots = Slots(prefilled, 2, 32)
            first = prefilled.logits.index_fill(1, eos, -torch.inf).argmax(-1)
            slots.admit(prefilled, [0, 1], [0, 1], first, room=[6, 3], held=[9, 9])
            for _ in range(6):
                compiled(lm.states, lm.head, slots, 32, eos)
            expected = torch.tensor(slowly(lm, prefilled, 7))[:, 1:]
            assert torch.equal(slots.history[0, :6], expected[0])
            assert torch.equal(slots.history[1, :3], expected[1, :3])  # and without room it stays where it is
            assert slots.lengths.tolist() == [len(rows[0]) + 6, len(rows[1]) + 3]
    assert graphs == 1


# A graph may replay only what the model would do.


def test_a_hook_an_adapter_or_another_kernel_keeps_decoding_plain(llama: LM) -> None:
    model = tiny_lm("llama").model
    assert unfit(model) == "the model is not on a GPU"
    adapted = get_peft_model(tiny_lm("llama").model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert "adapter" in str(unfit(adapted.get_base_model()))
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.get_input_embeddings().weight.data.add_(1)
    assert fingerprint(model) == before  # read anew at every replay
    model.get_input_embeddings().weight.data = model.get_input_embeddings().weight.data.clone()
    assert fingerprint(model) != before


def test_sizes_are_few_and_close() -> None:
    sizes = [bucket(number, 256) for number in range(1, 5000)]
    assert all(number <= size <= max(256, 1.5 * number) for number, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]


class Replayed(Engine):
    """Everything of captured steps but the GPU: what a graph would replay is run."""

    def _capture(self, span: int) -> Any:
        self.captures += 1
        run = self._advance

        class Graph:
            def replay(self) -> None:
                run(span)

        self._graphs[span] = Graph()  # type: ignore[assignment]
        return self._graphs[span]


@pytest.mark.slow
@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize(
    "lm",
    # In the normal suite one with full attention, and one with both kinds.
    [pytest.param(name, marks=() if name in ("llama", "gemma3") else pytest.mark.sweep) for name in FAMILIES],
    indirect=True,
)
def test_looking_only_now_and_then_changes_nothing(lm: LM, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = replace(Decoding(**SETTINGS[how]), max_new_tokens=40)
    free = lm.generate(lm.prefill(Prefix.of_tokens(ROWS[:1])), Decoding(max_new_tokens=30, min_new_tokens=30))
    other = tiny_lm(lm.name)
    other.model.generation_config.eos_token_id = [free[0].ids[20], 2]
    some = ROWS[:5]
    alone = [
        other.generate(other.prefill(Prefix.of_tokens([row])), decoding, [n])[0] for n, row in enumerate(some)
    ]
    monkeypatch.setattr("latentwire.lm.decoding.engine.unfit", lambda model: None)
    other.engine = Replayed(other, "graph")
    assert other.generate(other.prefill(Prefix.of_tokens(some)), decoding) == alone
    singles = [Prefix.of_tokens([row]) for row in some]
    for rows in (1, 3):
        assert other.generate_all(singles, decoding, rows=rows) == alone


def test_batches_of_other_sizes_and_lengths_share_their_graphs(llama: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.lm.decoding.engine.unfit", lambda model: None)
    lm = tiny_lm("llama")
    lm.engine = Replayed(lm, "graph")
    how = Decoding(max_new_tokens=20, min_new_tokens=20)
    for rows in (ROWS[:4], ROWS[4:8], [numbers(90, 1)], ROWS[:3]):
        made = lm.generate(lm.prefill(Prefix.of_tokens(rows)), how)
        assert made == llama.generate(llama.prefill(Prefix.of_tokens(rows)), how)
    assert lm.engine.captures == 1
    lm.engine.release()
    lm.generate(lm.prefill(Prefix.of_tokens(ROWS)), how)
    assert lm.engine.captures == 2


# Texts.


class Letters:
    """Token n is the n-th letter of an alphabet whose letter 0 ends a text."""

    eos_ids = frozenset({0})
    decoded = 0

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded += len(ids)
        return "".join(" abcdefghij"[i] for i in ids)


@pytest.mark.parametrize("portion", [1, 2, 3, 5, 16])
def test_a_text_does_not_depend_on_the_portions_it_comes_in(portion: int) -> None:
    tokens = [1, 2, 3, 1, 2, 4, 5, 1, 0, 7]
    for stop, limit, text, count, ended in (
        ((), 20, "abcabdea", 8, "eos"),
        ((), 5, "abcab", 5, "length"),
        (("abd", "x"), 20, "abc", 6, "stop"),
        (("ea", "de"), 20, "abcab", 7, "stop"),
        (("eah",), 20, "abcabdea", 8, "eos"),
    ):
        made = OpenText(Letters(), Decoding(max_new_tokens=limit, stop=stop), 0, 0)
        for start in range(0, len(tokens), portion):
            if not made.ended:
                made.take(tokens[start : start + portion])
        result = made.result()
        assert (result.text, len(result.ids), result.ended) == (text, count, ended)


def test_tokens_are_decoded_once_and_for_stop_strings_a_few_times() -> None:
    for stop, most in (((), 400), (("jjj",), 400 * 20)):
        letters = Letters()
        text = OpenText(letters, Decoding(max_new_tokens=400, stop=stop), 0, 0)
        for n in range(400):
            text.take([1 + n % 5])
        text.result()
        assert letters.decoded <= most

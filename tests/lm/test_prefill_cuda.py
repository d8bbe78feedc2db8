"""On a GPU: a captured prefill gives, to the bit, what its size gives uncaptured, and what is read as it comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.reading import Columns, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefilling import graphs
from latentwire.lm.prefix import Prefilled, Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a GPU")

ROWS = [numbers(14, 1), numbers(9, 2), numbers(11, 3)]
KINDS = ("text", "prefix mask", "latents", "soft tokens")


def on_gpu(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> LM:
    return LM(tiny_model(family, **changes).to("cuda", dtype), tiny_tokenizer(), name=family)


def of_kind(lm: LM, kind: str, rows: list[list[int]]) -> Prefix:
    if kind == "text":
        return Prefix.of_tokens(rows, device="cuda")
    if kind == "prefix mask":
        return Prefix.of_tokens(
            rows, [[0] * (len(row) // 2) + [-1] * (len(row) - len(row) // 2) for row in rows], device="cuda"
        )
    text = Prefix.of_tokens(rows, device="cuda")
    if kind == "soft tokens":
        assert text.ids is not None
        return replace(text, ids=None, embeddings=lm.embed(text.ids).detach())
    _, memory = lm.memorize(Prefix.of_tokens([numbers(12, 7)] * len(rows), device="cuda"))
    at = torch.arange(0, 12, 3, device="cuda")
    columns = memory.columns
    kept = Memory(
        tuple(each[:, :, at].detach() for each in memory.keys),
        tuple(each[:, :, at].detach() for each in memory.values),
        Columns.of(columns.valid[:, at], columns.positions[:, at]),
    )
    moved = Columns.of(text.columns.valid, text.columns.positions + 12)
    return replace(text, columns=moved, memory=kept, plain=False)


def prefilled(lm: LM, mode: graphs.Mode, prefix: Prefix) -> Prefilled:
    lm.prefill_graphs.mode = mode
    made = lm.prefill(prefix)
    assert lm.prefill_graphs.refused is None, lm.prefill_graphs.refused
    return made


def tensors(made: Prefilled) -> list[Tensor]:
    layers: Any = made.cache.layers
    return [made.logits, *(each for layer in layers for each in (layer.keys, layer.values))]


def real(made: Prefilled, prefix: Prefix) -> list[Tensor]:
    """The logits, and keys and values of real columns."""
    valid = prefix.columns.valid
    logits, *kept = tensors(made)
    return [logits, *(each.transpose(1, 2)[valid] for each in kept)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_replay_gives_what_its_size_gives(family: str, dtype: torch.dtype, kind: str) -> None:
    lm = on_gpu(family, dtype)
    for rows in (ROWS, ROWS[:1]):
        prefix = of_kind(lm, kind, rows)
        wanted = prefilled(lm, "padded", prefix)
        made = [prefilled(lm, "graph", prefix) for _ in range(4)]
        for each in made:
            for ours, theirs in zip(tensors(each), tensors(wanted), strict=True):
                assert torch.equal(ours, theirs)
    assert lm.prefill_graphs.captures == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_replay_gives_what_is_read_as_it_comes(family: str, kind: str) -> None:
    lm = on_gpu(family)
    others = [[numbers(n, n) for n in lengths] for lengths in ((16, 1, 8), (3, 2, 5), (14, 9, 11))]
    prefixes = [of_kind(lm, kind, rows) for rows in (*others, *others)]
    for prefix in prefixes:
        wanted = real(prefilled(lm, "off", prefix), prefix)
        for ours, theirs in zip(real(prefilled(lm, "graph", prefix), prefix), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=1e-4)
    assert lm.prefill_graphs.captures == 1


def test_texts_go_on_the_same() -> None:
    lm, how = on_gpu(), Decoding(max_new_tokens=20, min_new_tokens=20)
    for kind in KINDS:
        prefix = of_kind(lm, kind, ROWS)
        wanted = lm.generate(prefilled(lm, "off", prefix), how)
        made = [prefilled(lm, "graph", prefix) for _ in range(3)]
        assert all(lm.generate(each, how) == wanted for each in made)


def test_what_was_read_is_kept_when_more_is_read() -> None:
    lm = on_gpu()
    first, other = (
        Prefix.of_tokens(ROWS, device="cuda"),
        Prefix.of_tokens([row[::-1] for row in ROWS], device="cuda"),
    )
    made = [prefilled(lm, "graph", first) for _ in range(3)]
    before = [each.clone() for each in tensors(made[-1])]
    prefilled(lm, "graph", other)
    prefilled(lm, "graph", Prefix.of_tokens([numbers(40, 1)], device="cuda"))
    assert all(torch.equal(one, two) for one, two in zip(before, tensors(made[-1]), strict=True))


def test_many_sizes_share_memory_and_do_not_disturb_each_other() -> None:
    lm = on_gpu(max_position_embeddings=1024)
    prefixes = [
        Prefix.of_tokens([numbers(n, n)] * rows, device="cuda") for n, rows in ((300, 1), (20, 4), (100, 2))
    ]
    wanted = [tensors(prefilled(lm, "padded", prefix)) for prefix in prefixes]
    for _ in range(3):
        for prefix, want in zip(prefixes, wanted, strict=True):
            made = tensors(prefilled(lm, "graph", prefix))
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(made, want, strict=True))
    assert lm.prefill_graphs.captures == 3


def test_changed_weights_are_read_and_moved_ones_captured_anew() -> None:
    lm, prefix = on_gpu(), Prefix.of_tokens(ROWS, device="cuda")
    before = [prefilled(lm, "graph", prefix).logits for _ in range(3)][-1]
    weight = lm.embeddings()
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    changed = prefilled(lm, "graph", prefix).logits
    assert not torch.equal(changed, before)
    assert lm.prefill_graphs.captures == 1
    weight.data = weight.data.flip(0).clone()
    assert torch.equal([prefilled(lm, "graph", prefix).logits for _ in range(3)][-1], before)
    assert lm.prefill_graphs.captures == 2


def test_a_hook_is_not_left_out() -> None:
    lm, calls, prefix = on_gpu(), [], Prefix.of_tokens(ROWS, device="cuda")
    for _ in range(3):
        lm.prefill(prefix)
    assert lm.prefill_graphs.captures == 1
    handle = lm.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        lm.prefill(prefix)
    assert len(calls) == 3
    assert "hook" in str(lm.prefill_graphs.refused)
    handle.remove()
    for _ in range(3):
        lm.prefill(prefix)
    assert lm.prefill_graphs.refused is None
    assert lm.prefill_graphs.captures == 2


def test_a_model_that_waits_for_the_device_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, prefix = on_gpu(), Prefix.of_tokens(ROWS, device="cuda")
    wanted = prefilled(lm, "off", prefix).logits
    head = lm.head

    def looking(hidden: Tensor) -> Tensor:
        assert float(hidden.sum()) < 1e9
        return head(hidden)

    monkeypatch.setattr(lm, "head", looking)
    lm.prefill_graphs.mode = "graph"
    lm.prefill(prefix)
    with pytest.warns(UserWarning, match="without captured graphs"):
        lm.prefill(prefix)
    assert lm.prefill_graphs.refused
    assert torch.equal(lm.prefill(prefix).logits, wanted)
    assert torch.rand(3, device="cuda").isfinite().all()  # a failed capture would have broken the generator
    monkeypatch.undo()
    lm.prefill_graphs.mode = "off"
    assert torch.equal(lm.prefill(prefix).logits, wanted)


def test_under_inference_mode_and_outside_of_it() -> None:
    lm, prefix = on_gpu(), Prefix.of_tokens(ROWS, device="cuda")
    made = []
    for _ in range(2):
        with torch.inference_mode():
            made.append(prefilled(lm, "graph", prefix).logits.clone())
        made.append(prefilled(lm, "graph", prefix).logits)
    assert all(torch.equal(each, made[0]) for each in made)
    assert lm.prefill_graphs.captures == 1


def test_long_prefixes_are_read_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "operations", lambda device: 1e6)
    lm = on_gpu(max_position_embeddings=8192)
    lm.prefill_graphs.mode = "graph"
    for _ in range(3):
        lm.prefill(Prefix.of_tokens([numbers(4000, 1)], device="cuda"))
    assert not lm.prefill_graphs._sizes

"""The kernels for training compute what the dense mask says, states and gradients, on every family."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from latentwire.lm.masks import attention, flex, varlen
from latentwire.lm.masks import varlen_runs as split
from latentwire.lm.masks.intervals import find, intervals
from latentwire.lm.masks.reading import SHARED, Columns, LayerRange, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import CAUSAL
from latentwire.training.finetuning.documents import IGNORE, Document
from latentwire.training.finetuning.packing import Rows, collate
from tests.support.models import tiny_lm

FAMILIES = ("llama", "qwen3", "mistral", "ministral3", "gemma3", "gpt_neox")


def made(blocks: list[int], seed: int) -> Document:
    draw = random.Random(seed)
    ids = [draw.randrange(3, 300) for _ in blocks]
    return Document(ids, [IGNORE if b != CAUSAL else t for b, t in zip(blocks, ids, strict=True)], blocks)


SHAPES = {
    "prefix": [[0] * 7 + [-1] * 5, [0] * 3 + [-1] * 9, [0] * 1 + [-1] * 4, [0] * 11 + [-1] * 2],
    "causal": [[-1] * 6, [-1] * 9, [-1] * 1, [-1] * 12],
    "some without a prompt": [[0] * 7 + [-1] * 3, [-1] * 8, [0] * 5 + [-1] * 4, [-1] * 3],
    "conversations": [
        [0] * 4 + [-1] * 3 + [2] * 5 + [-1] * 2,
        [-1] * 2 + [1] * 6 + [-1] * 3,
        [0] * 3 + [1] * 4 + [-1],
    ],
    "nothing but a prompt": [[0] * 9, [0] * 4 + [-1] * 2],
}


def rows(shape: str, layers: LayerRange | None = None, width: int | None = None) -> Rows:
    """Two packed rows of different length: the shorter one ends in padding."""
    documents = [made(blocks, n) for n, blocks in enumerate(SHAPES[shape])]
    found = collate([documents[:-1], documents[-1:]], layers)
    if width is None:
        return found
    pads = width - found.ids.shape[1]
    c = found.columns
    fit = torch.nn.functional.pad
    columns = Columns(
        fit(c.valid, (0, pads)),
        fit(c.positions, (0, pads)),
        fit(c.blocks, (0, pads), value=-1),
        fit(c.documents, (0, pads)),
    )
    return Rows(fit(found.ids, (0, pads)), fit(found.labels, (0, pads), value=IGNORE), columns, layers)


def read(lm: LM, given: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    """States of the real columns, and every weight's gradient of a random function of them."""
    lm.model.zero_grad()
    hidden = lm.run(given.ids, given.columns, Reading(given.columns, given.layers))[given.columns.valid]
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden)).sum().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}


def agree(ours: tuple[Tensor, dict[str, Tensor]], reference: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], reference[0], atol=1e-4, rtol=1e-4)
    assert ours[1].keys() == reference[1].keys()
    for name, gradient in reference[1].items():
        scale = max(float(gradient.abs().max()), 1.0)
        torch.testing.assert_close(ours[1][name] / scale, gradient / scale, atol=1e-4, rtol=1e-3, msg=name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[varlen.Call]:
    """The variable-length calls that were made."""
    seen: list[varlen.Call] = []

    def loop(call, *args, honest=varlen.loop):
        seen.append(call)
        return honest(call, *args)

    monkeypatch.setattr(varlen, "kernel", lambda query: loop)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_split_equals_the_dense_mask(family: str, shape: str, calls: list[varlen.Call]) -> None:
    given = rows(shape)
    agree(read(tiny_lm(family, kernel="split"), given), read(tiny_lm(family), given))
    assert calls


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_outside_a_range_of_layers_split_is_causal(family: str, calls: list[varlen.Call]) -> None:
    given = rows("prefix", LayerRange(1, 2))
    lm = tiny_lm(family, kernel="split")
    calls.clear()
    agree(read(lm, given), read(tiny_lm(family), given))
    assert len(calls) == 1 + 2 + 1


def test_split_trains_under_activation_checkpointing(calls: list[varlen.Call]) -> None:
    lm = tiny_lm(kernel="split")
    lm.model.gradient_checkpointing_enable({"use_reentrant": False})
    lm.model.train()
    calls.clear()
    agree(read(lm, rows("prefix")), read(tiny_lm(), rows("prefix")))
    assert len(calls) == 2 * 3 * 2, "every layer runs twice"


def test_a_causal_row_is_one_call_without_a_gather_and_a_prompt_gathers_itself_alone() -> None:
    """What makes the split cheap: no index in the causal call, no repeated key in the full one."""
    causal, prefix = (find(rows(shape).columns) for shape in ("causal", "prefix"))
    assert causal is not None
    assert prefix is not None
    (only,) = split.runs(causal, True, torch.device("cpu")).calls
    assert only.keys is None
    assert split.runs(causal, True, torch.device("cpu")).order is None
    full, rest = split.runs(prefix, True, torch.device("cpu")).calls
    assert rest.keys is None
    assert full.distinct
    assert full.keys is not None
    assert len(full.keys) == full.queries == 7 + 3 + 1 + 11


def test_indices_are_made_once_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    made_runs = []
    lm = tiny_lm(kernel="split")
    monkeypatch.setattr(split, "runs", lambda *a, honest=split.runs: made_runs.append(1) or honest(*a))
    lm.run(rows("prefix").ids, rows("prefix").columns, Reading(rows("prefix").columns))
    assert len(made_runs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_flex_equals_the_dense_mask(family: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through flex's unfused arithmetic: on a CPU the compiled kernel takes half a minute and has no backward."""
    given = rows(shape, width=flex.MULTIPLE)
    masks = []
    monkeypatch.setattr(
        flex, "attend", lambda mask, *a, honest=flex.attend, **k: masks.append(mask) or honest(mask, *a, **k)
    )
    states = [
        lm.run(given.ids, given.columns, Reading(given.columns))[given.columns.valid]
        for lm in (tiny_lm(family, kernel="flex"), tiny_lm(family))
    ]
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=1e-4)
    assert len(masks) == 3
    kinds = {"gemma3": 2}.get(family, 1)
    assert len({id(mask) for mask in masks}) == kinds, "layers of one kind share one mask"


@pytest.mark.slow
@torch.no_grad()
def test_flex_soft_caps() -> None:
    given = rows("prefix", width=flex.MULTIPLE)
    states = [
        lm.run(given.ids, given.columns, Reading(given.columns))[given.columns.valid]
        for lm in (tiny_lm("gemma2", kernel="flex"), tiny_lm("gemma2", kernel="eager"))
    ]
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("kernel", ["flex", "split"])
@torch.no_grad()
def test_behind_a_cache_the_mask_is_dense_and_right(family: str, kernel: str) -> None:
    """A model that trains with a fast kernel prefills, scores and generates as with the slow one."""
    if (family, kernel) == ("gemma2", "split"):
        pytest.skip("refused: split has no soft-capping")
    fast, slow = tiny_lm(family, kernel=kernel), tiny_lm(family, kernel="eager")
    prefix = Prefix.of_tokens([[5, 9, 30, 4, 8], [7, 3, 11]], [[0] * 5, [0] * 3])
    found = [lm.prefill(prefix) for lm in (fast, slow)]
    torch.testing.assert_close(found[0].logits, found[1].logits, atol=1e-4, rtol=1e-4)
    scores = [lm.score(each, [[[5, 6], [9]], [[3]]]) for lm, each in zip((fast, slow), found, strict=True)]
    for ours, theirs in zip(scores[0], scores[1], strict=True):
        assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in theirs], abs=1e-3)
    assert [g.ids for g in fast.generate(found[0])] == [g.ids for g in slow.generate(found[1])]


def columns(valid: list[int], positions: list[int], blocks: list[int], documents: list[int]) -> Columns:
    parts = [torch.tensor([each]) for each in (valid, positions, blocks, documents)]
    return Columns(parts[0].bool(), *parts[1:])


@pytest.mark.parametrize(
    "given",
    [
        columns([1] * 4, [0, 1, 3, 4], [-1] * 4, [0] * 4),
        columns([1] * 4, [0, 1, 0, 1], [-1] * 4, [0] * 4),
        columns([1] * 4, [0, 1, 2, 3], [0, -1, 0, -1], [0] * 4),
        columns([1, 0, 1, 1], [0, 0, 1, 2], [-1] * 4, [0] * 4),
        columns([1] * 4, [0, 1, 2, 3], [-1] * 4, [SHARED, SHARED, 0, 0]),
        columns([1] * 4, [0, 0, 1, 1], [-1] * 4, [0, 1, 0, 1]),
    ],
    ids=["a gap of positions", "a start anew", "a block in two places", "padding inside", "shared", "interleaved"],
)
def test_what_is_no_interval_is_left_to_the_dense_mask(given: Columns) -> None:
    assert find(given) is None
    ids = torch.tensor([[5, 9, 30, 4]])
    with torch.no_grad():
        states = [lm.run(ids, given, Reading(given)) for lm in (tiny_lm(kernel="split"), tiny_lm())]
    torch.testing.assert_close(states[0], states[1])


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_are_the_dense_mask(shape: str, window: int | None, both_ways: bool) -> None:
    given = rows(shape)
    reading = Reading(given.columns, None if both_ways else LayerRange(0, 0))
    found = intervals(reading)
    assert found is not None
    start, stop = found.limits(both_ways, window)
    key = torch.arange(given.ids.shape[1])
    ours = (key >= start[..., None]) & (key < stop[..., None])
    dense = reading.visible(len(key), len(key), 0, window)[:, 0]
    real = given.columns.valid
    assert torch.equal(ours[real], dense[real])
    assert not ours[real][:, :].logical_and(~real.repeat_interleave(real.sum(1), 0)).any()
    assert ours.any(-1).all(), "padding sees itself"


def test_without_a_reading_split_is_stock_sdpa() -> None:
    lm, ids = tiny_lm(), torch.tensor([[5, 9, 30, 4]])
    with torch.no_grad():
        attention.install(lm.model, "split")
        ours = lm.model(ids).logits
        lm.model.set_attn_implementation("sdpa")
        assert torch.equal(ours, lm.model(ids).logits)


def _fake_varlen(grouped: bool):
    """`varlen_attn` by the plain loop, with the signature of torch 2.11 or, `grouped`, of torch 2.13."""

    def run(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size, scale, enable_gqa):
        if query.shape[1] != key.shape[1] and not enable_gqa:
            raise ValueError("Expect query and key/value to have the same number of heads")
        for ends, longest, tokens in ((cu_seq_q, max_q, query), (cu_seq_k, max_k, key)):
            assert ends.dtype == torch.int32
            assert (int(ends.diff().max()), int(ends[-1])) == (longest, len(tokens))
        call = varlen.Call(len(query), None, True, cu_seq_q, cu_seq_k, (max_q, max_k), window_size[1] == 0)
        return varlen.loop(call, query, key, value, window_size, scale)

    def new(q, k, v, a, b, c, d, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        return run(q, k, v, a, b, c, d, window_size, scale, enable_gqa)

    def old(q, k, v, a, b, c, d, *, scale=None, window_size=(-1, -1)):
        return run(q, k, v, a, b, c, d, window_size, scale, False)

    return new if grouped else old


@pytest.mark.parametrize("grouped", [True, False], ids=["torch 2.13", "torch 2.11"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_the_flash_kernel_is_called_with(family: str, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends, lengths, windows and heads are right under both signatures; heads are repeated where they must be."""
    monkeypatch.setattr(torch_varlen, "varlen_attn", _fake_varlen(grouped))
    monkeypatch.setattr(varlen, "kernel", lambda query: varlen.flash)
    caches = (varlen._has_groups, varlen._groups_heads)
    for each in caches:
        each.cache_clear()
    try:
        for shape in ("prefix", "conversations"):
            agree(read(tiny_lm(family, kernel="split"), rows(shape)), read(tiny_lm(family), rows(shape)))
    finally:
        for each in caches:
            each.cache_clear()

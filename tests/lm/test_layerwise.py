"""A step whose layers share one compiled function chooses what the plain step does, and compiles one layer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from latentwire.lm.decoding.decode_step import advance
from latentwire.lm.decoding.engine import Engine
from latentwire.lm.decoding.layerwise import Layerwise, keep_kernels
from latentwire.lm.decoding.merged import Merging, applied, merge
from latentwire.lm.decoding.slots import Slots
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm

ROWS = [numbers(9, 1), numbers(14, 2), numbers(5, 3)]
STEPS = 10
Step = Callable[..., None]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def split(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    next_position: Tensor,
    positions: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """What our kernel computes, which runs on a GPU only."""
    columns = key.shape[2]
    see = torch.arange(columns) <= lengths[:, None]
    if window is not None:
        see = see & (next_position[:, None] - positions[:, :columns] < window)
    rows, heads, width = query.shape
    folded = query.view(rows, key.shape[1], -1, width)
    out = functional.scaled_dot_product_attention(folded, key, value, attn_mask=see[:, None, None], scale=scale)
    return out.reshape(rows, heads, width)


@torch.no_grad()
def said(lm: LM, step: Step, rows: list[list[int]], merging: Merging = "none") -> tuple[Tensor, Tensor]:
    """The tokens and the last logits of a few steps; the last row stops early, the first may not end."""
    prefilled = lm.prefill(Prefix.of_tokens(rows))
    count = len(rows)
    slots = Slots(prefilled, count, 64)
    room = [STEPS] * (count - 1) + [STEPS // 2]
    slots.admit(prefilled, range(count), range(count), prefilled.logits.argmax(-1), room, [3] + [0] * (count - 1))
    merged = merge(lm.model, merging)
    eos = torch.tensor(sorted(lm.eos_ids))
    with applied(merged), torch._dynamo.config.patch(recompile_limit=64):
        for _ in range(STEPS):
            step(lm.states, lm.head, slots, 64, eos, split)
    for group in merged:
        group.undo()
    return slots.history[:, :STEPS].clone(), slots.logits


def layerwise(lm: LM) -> tuple[Layerwise, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("aot_eager")
    return Layerwise(lm.model.get_decoder(), None, counter), counter


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("merging", ["none", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_logits_are_those_of_the_plain_step(family: str, merging: Merging, rows: int) -> None:
    lm = tiny_lm(family)
    step, _ = layerwise(lm)
    tokens, logits = said(lm, step, ROWS[:rows], merging)
    wanted, theirs = said(lm, advance, ROWS[:rows])
    assert torch.equal(tokens, wanted)
    torch.testing.assert_close(logits, theirs, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "kinds"), [("llama", 1), ("ministral3", 1), ("gemma3", 2)])
def test_as_much_is_compiled_for_many_layers_as_for_few(family: str, kinds: int) -> None:
    def compilations(layers: int) -> int:
        torch._dynamo.reset()
        types = ["sliding_attention", "full_attention"] * (layers // 2)
        changes: dict[str, Any] = {"layer_types": types} if family == "gemma3" else {}
        lm = tiny_lm(family, num_hidden_layers=layers, **changes)
        step, counter = layerwise(lm)
        said(lm, step, ROWS[:1], "attention")
        return counter.frame_count

    # Each kind of layer with its rotation, the last norm, and the choice of a token.
    assert compilations(2) == compilations(6) == 2 * kinds + 2


def test_the_model_is_left_as_it_was() -> None:
    lm = tiny_lm()
    before = [{**vars(module)} for module in lm.model.modules()]
    said(lm, layerwise(lm)[0], ROWS)
    assert [{**vars(module)} for module in lm.model.modules()] == before


def test_a_model_that_our_kernel_does_not_read_is_compiled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.lm.decoding.engine.keep_kernels", lambda: None)
    for lm, kernel, ways in ((tiny_lm(), split, 2), (tiny_lm(), None, 1), (tiny_lm("gemma2"), split, 1)):
        engine = Engine(lm, "compiled")
        engine._split = kernel
        assert len(engine._ways()) == ways
        assert isinstance(engine._ways()[0], Layerwise) == (ways == 2)
        engine.layerwise = False
        assert len(engine._ways()) == 1


def test_kernels_are_kept_in_the_folder_of_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_kernels()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_kernels()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "file"))
    keep_kernels()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ

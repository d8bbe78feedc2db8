"""On a GPU: a captured graph says what the plain steps say, for every batch, capacity and queue."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentwire.lm.decoding import Decoding, Generated
from latentwire.lm.decoding.engine import Mode, unfit
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a GPU")

LENGTHS = [9, 5, 12, 3, 17, 7, 1, 10, 4]
ROWS = [numbers(length, seed) for seed, length in enumerate(LENGTHS)]


def on_gpu(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> LM:
    return LM(tiny_model(family, **changes).to("cuda", dtype), tiny_tokenizer(), name=family)


def said(lm: LM, mode: Mode, rows: list[list[int]], seeds: list[int] | None = None, **how: Any) -> list[Generated]:
    lm.engine.mode = mode
    made = lm.generate(lm.prefill(Prefix.of_tokens(rows, device="cuda")), Decoding(**how), seeds)
    assert mode == "plain" or lm.engine.refused is None, lm.engine.refused
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_says_what_plain_steps_say(family: str, dtype: torch.dtype) -> None:
    lm = on_gpu(family, dtype)
    for how in (
        {"max_new_tokens": 40, "min_new_tokens": 40},
        {"max_new_tokens": 40, "min_new_tokens": 20},
        {"max_new_tokens": 40, "stop": ("e", "it=")},
    ):
        # The same number of rows and the same columns: in bf16 another shape may take another kernel.
        assert said(lm, "graph", ROWS[:4], **how) == said(lm, "plain", ROWS[:4], **how)
    sampled: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    if dtype == torch.float32:
        assert said(lm, "graph", ROWS[:3], [4, 5, 6], **sampled) == said(
            lm, "plain", ROWS[:3], [4, 5, 6], **sampled
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_kernels_attend_as_sdpa_does(dtype: torch.dtype) -> None:
    split = pytest.importorskip("latentwire.lm.decoding.split_attention")
    for heads, shared, width in ((32, 8, 128), (4, 4, 64), (8, 1, 16), (24, 8, 256)):
        assert split.agrees(torch.device("cuda"), dtype, heads, shared, width)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_of_attending_say_the_same(family: str) -> None:
    lm = on_gpu(family, head_dim=16)
    made = [said(lm, "graph", ROWS[:4], max_new_tokens=40, min_new_tokens=40)]
    assert family == "gpt_neox" or lm.engine._split is not None  # whose heads stay 8 wide
    lm.engine.attention = "sdpa"
    made.append(said(lm, "graph", ROWS[:4], max_new_tokens=40, min_new_tokens=40))
    assert made[0] == made[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_products_say_what_plain_steps_say(family: str) -> None:
    lm = on_gpu(family)
    lm.engine.merging = "all"
    how = {"max_new_tokens": 40, "min_new_tokens": 40}
    merged = said(lm, "graph", ROWS[:4], **how)
    assert bool(lm.engine._merged) == (family != "gpt_neox")
    assert merged == said(lm, "plain", ROWS[:4], **how)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("way", ["by layer", "as a whole", "sdpa"])
def test_a_compiled_step_says_what_plain_steps_say(way: str, rows: int, recwarn: pytest.WarningsRecorder) -> None:
    lm = on_gpu(head_dim=16)
    lm.engine.layerwise = way == "by layer"
    lm.engine.attention = "sdpa" if way == "sdpa" else "split"
    how = {"max_new_tokens": 40, "min_new_tokens": 40}
    assert said(lm, "compiled", ROWS[:rows], **how) == said(lm, "plain", ROWS[:rows], **how)
    assert (lm.engine._split is None) == (way == "sdpa")
    assert not [each for each in recwarn if "as a whole" in str(each.message)]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_queue_gives_each_prompt_what_it_gets_alone(rows: int) -> None:
    lm = on_gpu()
    lm.model.generation_config.eos_token_id = said(lm, "plain", ROWS[:1], max_new_tokens=9, min_new_tokens=9)[
        0
    ].ids[6]
    lm = LM(lm.model, lm.tokenizer)
    alone = [said(lm, "plain", [row], max_new_tokens=30)[0] for row in ROWS]
    lm.engine.mode = "graph"
    singles = [Prefix.of_tokens([row], device="cuda") for row in ROWS]
    assert lm.generate_all(singles, Decoding(max_new_tokens=30), rows=rows) == alone


def test_prompts_of_other_lengths_need_no_other_graph() -> None:
    lm = on_gpu()
    for rows in (ROWS[:3], ROWS[3:6], ROWS[6:9], [numbers(40, 1), numbers(50, 2), numbers(60, 3)]):
        said(lm, "graph", rows, max_new_tokens=20, min_new_tokens=20)
    assert lm.engine.captures == 1


def test_slots_grow_while_others_write() -> None:
    lm = on_gpu(max_position_embeddings=1024)
    rows = [numbers(n, n) for n in (3, 4, 300, 5, 600, 6)]
    how = Decoding(max_new_tokens=20, min_new_tokens=20)
    alone = [said(lm, "plain", [row], max_new_tokens=20, min_new_tokens=20)[0] for row in rows]
    lm.engine.mode = "graph"
    assert lm.generate_all([Prefix.of_tokens([row], device="cuda") for row in rows], how, rows=2) == alone


def test_changed_weights_are_read_and_moved_ones_captured_anew() -> None:
    lm, how = on_gpu(), {"max_new_tokens": 20, "min_new_tokens": 20}
    before = said(lm, "graph", ROWS[:4], **how)
    weight = lm.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    changed = said(lm, "graph", ROWS[:4], **how)
    assert changed != before
    assert lm.engine.captures == 1
    weight.data = weight.data.flip(0).clone()
    assert said(lm, "graph", ROWS[:4], **how) == before
    assert lm.engine.captures == 2


def test_a_hook_is_not_left_out() -> None:
    lm, calls = on_gpu(), []
    handle = lm.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    assert "hook" in str(unfit(lm.model))
    lm.engine.mode = "graph"
    prefilled = lm.prefill(Prefix.of_tokens(ROWS[:2], device="cuda"))
    read = len(calls)
    lm.generate(prefilled, Decoding(max_new_tokens=5, min_new_tokens=5))
    assert len(calls) == read + 4
    handle.remove()

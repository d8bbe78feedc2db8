"""One step of decoding, timed for this engine and for Transformers, and how many bytes it must read."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from latentwire.bench.setup import GIB, BenchRow, Setup
from latentwire.lm.decoding import Decoding
from latentwire.lm.decoding.engine import Attention, Mode
from latentwire.lm.model import LM
from latentwire.lm.operation_counts import Counts
from latentwire.lm.prefix import Prefix

PROMPT = 512
LONG = 65
"""Tokens of the longer of the two texts whose times are compared."""
COMPILED = "latentwire, compiled and captured"
OURS: dict[str, tuple[Mode, Attention]] = {
    "latentwire, one step at a time": ("plain", "split"),
    "latentwire, captured graph, sdpa": ("graph", "sdpa"),
    "latentwire, captured graph": ("graph", "split"),
    COMPILED: ("compiled", "split"),
    f"{COMPILED}, sdpa": ("compiled", "sdpa"),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each byte, which is all that an `LM` needs to be built."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def prompt_ids(setup: Setup, vocabulary: int, batch: int, length: int) -> Tensor:
    """Random token ids `(batch, length)` on the device, the same for the same batch size."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(5, vocabulary, (batch, length), generator=generator).to(setup.device)


def ours(setup: Setup, lm: LM, who: str, batch: int, prompt: int = PROMPT) -> BenchRow:
    """Time a step of this engine. who: a key of `OURS`, or any name for the fastest mode."""
    ids = prompt_ids(setup, lm.model.config.vocab_size, batch, prompt)
    prefix = Prefix.of_tokens(ids.tolist(), device=setup.device)
    lm.engine.release()
    lm.engine.mode, lm.engine.attention = OURS.get(who, ("compiled", "split"))
    if setup.device.type != "cuda":
        lm.engine.mode = "plain"

    def texts(tokens: int) -> None:
        how = Decoding(max_new_tokens=tokens, min_new_tokens=tokens)
        lm.generate(lm.prefill(prefix), how)
        if lm.engine.refused:
            raise RuntimeError(lm.engine.refused)

    row = step(setup, lm.model, who, batch, texts, prompt)
    ready = lm.engine.capture_seconds if lm.engine.captured else None
    return replace(row, figures={**row.figures, "capture_seconds": ready})


def peer(setup: Setup, model: Any, who: str, options: dict[str, Any], batch: int) -> BenchRow:
    """Time a step of Transformers' `generate` with `options`."""
    ids = prompt_ids(setup, model.config.vocab_size, batch, PROMPT)

    def texts(tokens: int) -> None:
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                **options,
            )

    return step(setup, model, who, batch, texts)


def step(
    setup: Setup,
    model: PreTrainedModel,
    who: str,
    batch: int,
    texts: Callable[[int], None],
    prompt: int = PROMPT,
) -> BenchRow:
    """Time a step of `texts(n)`, which generates n tokens for every row."""
    at = place(model, batch, prompt)
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        long = setup.timed(lambda: texts(LONG), repeats=3, warm=1)
        one = setup.timed(lambda: texts(1), repeats=3, warm=1)
    except Exception as error:  # a peer that cannot run is a line of the table, not the end of it
        return BenchRow(who, {"seconds": None}, at, note=f"{type(error).__name__}: {str(error)[:200]}")
    seconds = (long.low - one.low) / (LONG - 1)
    least = bytes_read(model, batch, prompt) / setup.bandwidth
    figures = {"seconds": seconds, "ms_per_step": seconds * 1e3, "times_floor": seconds / least}
    return BenchRow(who, {**figures, "tokens_per_second": batch / seconds, "peak_gib": long.peak_gib}, at)


def place(model: PreTrainedModel, batch: int, prompt: int) -> dict[str, str | int | float]:
    """`BenchRow.at` of a step: the model's size, the batch and the prompt's length in tokens."""
    billions = round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 4)
    return {"billions": billions, "layers": model.config.num_hidden_layers, "batch": batch, "prompt": prompt}


def floor(setup: Setup, model: PreTrainedModel, batch: int, prompt: int = PROMPT) -> BenchRow:
    """The least time of a step: reading once, at the measured bandwidth, what it must read."""
    read = bytes_read(model, batch, prompt)
    seconds = read / setup.bandwidth
    figures = {"seconds": seconds, "ms_per_step": seconds * 1e3, "times_floor": 1.0}
    at = place(model, batch, prompt)
    return BenchRow(
        "floor", {**figures, "tokens_per_second": batch / seconds}, at, f"{read / GIB:.2f} GiB read once"
    )


def bytes_read(model: PreTrainedModel, batch: int, prompt: int) -> int:
    """Bytes that a step reads: the weights but for an embedding that is looked up, and the middle step's cache."""
    size = next(model.parameters()).element_size()
    return Counts.of(model).step_bytes(batch, prompt + LONG // 2, size)

"""Greedy decoding behind a prompt, milliseconds a step, beside Transformers' `generate` and the memory floor.

A step is timed as (time for 65 tokens - time for 1) / 64, the same for all, so that reading the prompt does not
count; each time is the fastest of three. The floor is the time a copy takes for as many bytes as a step must read:
every weight once and the keys and values of every row.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from latentwire.bench.setup import GIB, Row, Setup
from latentwire.lm import attention
from latentwire.lm.decoding import Decoding
from latentwire.lm.decoding.engine import COMPILER, Attention, Engine, Mode
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.reading import Columns

PROMPT = 512
LONG = 65
"""Tokens of the longer of the two texts whose times are compared."""
BATCHES, MORE_BATCHES = (1, 32), (2, 4, 8, 16, 64)
PREFILLS, PREFILL_ROWS = (64, 512, 2048, 4096), 8
OURS: dict[str, tuple[Mode, Attention]] = {
    "latentwire, one step at a time": ("plain", "split"),
    "latentwire, captured graph, sdpa": ("graph", "sdpa"),
    "latentwire, captured graph": ("graph", "split"),
    "latentwire, compiled and captured": ("compiled", "split"),
    "latentwire, compiled and captured, sdpa": ("compiled", "sdpa"),
}
COMPILERS: dict[str, dict[str, Any]] = {
    "latentwire, compiled without tuning": {"coordinate_descent_tuning": False},
    "latentwire, compiled, combo kernels": {"combo_kernels": True},
    "latentwire, compiled, max-autotune": {"max_autotune": True},
}
"""Other options of the compiler, to see what each is worth."""
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("transformers generate, dynamic cache", {}),
    "static": ("transformers generate, static cache", {"cache_implementation": "static"}),
}


def measure(setup: Setup) -> Iterator[Row]:
    """Ours in every mode, then the peers, at batch 1 and 32; with `sweep` also other batches, and prefills."""
    lm = LM(setup.model(), tokenizer(), name=setup.shape)
    gpu = setup.device.type == "cuda"
    for batch in BATCHES:
        yield _floor(setup, lm.model, batch)
        for who, (mode, kernel) in OURS.items():
            if mode == "plain" or (gpu and (setup.sweep or (mode, kernel) != ("compiled", "sdpa"))):
                yield _ours(setup, lm, who, batch)
    if setup.sweep:
        for batch in MORE_BATCHES:
            yield _floor(setup, lm.model, batch)
            yield _ours(setup, lm, "latentwire, captured graph" if gpu else next(iter(OURS)), batch)
        yield from _prefills(setup, lm)
        for who, options in COMPILERS.items() if gpu else ():
            lm.engine = Engine(lm)
            lm.engine.compiler = {**COMPILER, **options}
            for batch in BATCHES:
                yield _ours(setup, lm, who, batch)
    lm.engine.release()
    attention.uninstall(lm.model, "sdpa")
    for batch in BATCHES:
        for who, options in PEERS.values():
            yield _peer(setup, lm.model, who, options, batch)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: what an `LM` needs to be built, no more."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _prompts(setup: Setup, vocabulary: int, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(5, vocabulary, (batch, length), generator=generator).to(setup.device)


def _ours(setup: Setup, lm: LM, who: str, batch: int) -> Row:
    ids = _prompts(setup, lm.model.config.vocab_size, batch, PROMPT)
    positions = torch.arange(PROMPT, device=setup.device).expand(batch, -1)
    prefix = Prefix(ids=ids, columns=Columns.of(torch.ones_like(ids).bool(), positions))
    lm.engine.release()
    lm.engine.mode, lm.engine.attention = OURS.get(who, ("compiled", "split"))

    def texts(tokens: int) -> None:
        how = Decoding(max_new_tokens=tokens, min_new_tokens=tokens)
        lm.generate(lm.prefill(prefix), how)
        if lm.engine.refused:
            raise RuntimeError(lm.engine.refused)

    return _step(setup, lm.model, who, batch, texts)


def _peer(setup: Setup, model: Any, who: str, options: dict[str, Any], batch: int) -> Row:
    ids = _prompts(setup, model.config.vocab_size, batch, PROMPT)

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

    return _step(setup, model, who, batch, texts)


def _step(setup: Setup, model: PreTrainedModel, who: str, batch: int, texts: Callable[[int], None]) -> Row:
    """Time `texts(n)`, which writes n tokens a row."""
    at: dict[str, str | int] = {"batch": batch, "prompt": PROMPT}
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        long = setup.timed(lambda: texts(LONG), repeats=3, warm=1)
        one = setup.timed(lambda: texts(1), repeats=3, warm=1)
    except Exception as error:  # a peer that cannot run is a line of the table, not the end of it
        return Row(who, {"seconds": None}, at, note=f"{type(error).__name__}: {str(error)[:200]}")
    seconds = (long.low - one.low) / (LONG - 1)
    floor = _floor_seconds(setup, model, batch)
    figures = {"seconds": seconds, "ms_per_step": seconds * 1e3, "times_floor": seconds / floor}
    return Row(who, {**figures, "tokens_per_second": batch / seconds, "peak_gib": long.peak_gib}, at)


def _floor(setup: Setup, model: PreTrainedModel, batch: int) -> Row:
    seconds = _floor_seconds(setup, model, batch)
    figures = {"seconds": seconds, "ms_per_step": seconds * 1e3, "times_floor": 1.0}
    read = f"{_bytes(model, batch) / GIB:.2f} GiB read once"
    return Row(
        "floor", {**figures, "tokens_per_second": batch / seconds}, {"batch": batch, "prompt": PROMPT}, read
    )


def _floor_seconds(setup: Setup, model: PreTrainedModel, batch: int) -> float:
    return _bytes(model, batch) / setup.bandwidth


def _bytes(model: PreTrainedModel, batch: int) -> int:
    """Weights, of an embedding that is not also the head only what is looked up, and the middle step's cache."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size
    column = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    numbers = weights + batch * (PROMPT + LONG // 2) * column
    return int(numbers * next(model.parameters()).element_size())


def _prefills(setup: Setup, lm: LM) -> Iterator[Row]:
    """Reading prompts: what a shorter, latent prefix saves."""
    for length in PREFILLS:
        ids = _prompts(setup, lm.model.config.vocab_size, PREFILL_ROWS, length)
        positions = torch.arange(length, device=setup.device).expand(PREFILL_ROWS, -1)
        prefix = Prefix(ids=ids, columns=Columns.of(torch.ones_like(ids).bool(), positions))
        runs = {
            "latentwire prefill": lambda prefix=prefix: lm.prefill(prefix),
            "transformers prefill": lambda ids=ids: _stock(lm.model, ids),
        }
        for who, run in runs.items():
            at: dict[str, str | int] = {"batch": PREFILL_ROWS, "prompt": length}
            try:
                found = setup.timed(run, repeats=3, warm=1)
            except torch.OutOfMemoryError:
                yield Row(who, {"seconds": None}, at, note="out of memory")
                continue
            yield Row(who, {"seconds": found.seconds, "peak_gib": found.peak_gib}, at)


@torch.inference_mode()
def _stock(model: PreTrainedModel, ids: Tensor) -> None:
    model(input_ids=ids, use_cache=True, logits_to_keep=1)

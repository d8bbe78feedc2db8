"""Greedy decoding behind a prompt, milliseconds a step, beside Transformers' `generate` and the memory floor.

A step is timed as (time for 65 tokens - time for 1) / 64, the same for all, so that reading the prompt does not
count; each time is the fastest of three. The floor is the time a copy takes for as many bytes as a step must read:
every weight once and the keys and values of every row.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from latentwire.lm.decoding.merged import Merging
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.reading import Columns

PROMPT = 512
LONG = 65
"""Tokens of the longer of the two texts whose times are compared."""
BATCHES, MORE_BATCHES = (1, 32), (2, 4, 8, 16, 64)
PROMPTS, PREFILL_ROWS = (64, 512, 2048, 4096), 8
SWEEP_SHAPES: dict[str, tuple[str, ...]] = {"cuda": ("1b", "8b"), "cpu": ()}
OURS: dict[str, tuple[Mode, Attention]] = {
    "latentwire, one step at a time": ("plain", "split"),
    "latentwire, captured graph, sdpa": ("graph", "sdpa"),
    "latentwire, captured graph": ("graph", "split"),
    "latentwire, compiled and captured": ("compiled", "split"),
    "latentwire, compiled and captured, sdpa": ("compiled", "sdpa"),
}
LAYERS = 4
"""Of the model on which ways of compiling are compared: at its whole depth each would take a minute."""
WAYS: dict[str, tuple[tuple[int, ...], Merging, dict[str, Any]]] = {
    "nothing merged": ((1, 32), "none", {}),
    "attention merged": ((1,), "attention", {}),
    "all merged": ((1, 32), "all", {}),
    "attention merged, combo kernels": ((1,), "attention", {"combo_kernels": True}),
    "attention merged, dependent launch": ((1,), "attention", {"triton.enable_pdl": True}),
    "all merged, combo kernels": ((32,), "all", {"combo_kernels": True}),
    "all merged, dependent launch": ((32,), "all", {"triton.enable_pdl": True}),
    "all merged, products in Triton": ((32,), "all", {"max_autotune_gemm": True}),
}
"""Ways of compiling: at which batches, what is merged, options of the compiler."""
PARTS = ("modes", "ways")
"""Our modes and the peers; ways of compiling, and the whole model by the best of them."""
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("transformers generate, dynamic cache", {}),
    "static": ("transformers generate, static cache", {"cache_implementation": "static"}),
}


def measure(setup: Setup) -> Iterator[Row]:
    """Ours in every mode and the peers at batch 1 and 32; with `sweep` other batches, prompts, shapes and ways."""
    gpu = setup.device.type == "cuda"
    lm = LM(setup.model(), tokenizer(), name=setup.shape)
    if setup.wants("modes"):
        yield from _modes(setup, lm)
    if setup.wants("sweep"):
        yield from _sweep(setup, lm)
    if setup.only == "ways" or (gpu and setup.wants("sweep") and not setup.only):
        yield from _ways(setup, lm)


def _modes(setup: Setup, lm: LM) -> Iterator[Row]:
    gpu = setup.device.type == "cuda"
    for batch in BATCHES:
        yield _floor(setup, lm.model, batch)
        for who, (mode, kernel) in OURS.items():
            if mode == "plain" or (gpu and (setup.sweep or (mode, kernel) != ("compiled", "sdpa"))):
                yield _ours(setup, lm, who, batch)
    before = _stock(lm)
    for batch in BATCHES:
        for who, options in PEERS.values():
            yield _peer(setup, lm.model, who, options, batch)
    attention.install(lm.model, before)


def _sweep(setup: Setup, lm: LM) -> Iterator[Row]:
    """How a step grows with rows, prompt and model, in the mode that generation has by default."""
    who = "latentwire, captured graph" if setup.device.type == "cuda" else next(iter(OURS))
    for batch in sorted((*BATCHES, *MORE_BATCHES)):
        yield _floor(setup, lm.model, batch)
        yield _ours(setup, lm, who, batch)
    for prompt in PROMPTS:
        yield _floor(setup, lm.model, PREFILL_ROWS, prompt)
        yield _ours(setup, lm, who, PREFILL_ROWS, prompt)
    yield from _prefills(setup, lm)
    lm.engine.release()
    kind = setup.device.type if setup.device.type in SWEEP_SHAPES else "cpu"
    for shape in SWEEP_SHAPES[kind]:
        other = LM(replace(setup, shape=shape).model(), tokenizer(), name=shape)
        yield _floor(setup, other.model, 1)
        yield _ours(setup, other, who, 1)


def _ways(setup: Setup, lm: LM) -> Iterator[Row]:
    """Ways of compiling on a few layers, then the best for each batch on the whole model."""
    few = LM(setup.model(num_hidden_layers=LAYERS), tokenizer(), name=setup.shape)
    for batch in BATCHES:
        yield _floor(setup, few.model, batch)
        speeds: dict[str, float] = {}
        for way, (batches, _, _) in WAYS.items():
            if batch in batches:
                row = _ours(setup, _as(few, way), way, batch)
                yield row
                if seconds := row.figures["seconds"]:
                    speeds[way] = seconds
        few.engine.release()
        if speeds:
            best = min(speeds, key=speeds.__getitem__)
            yield _floor(setup, lm.model, batch)
            yield _ours(setup, _as(lm, best), best, batch)
            lm.engine.release()


def _as(lm: LM, way: str) -> LM:
    _, merging, options = WAYS[way]
    lm.engine.release()
    lm.engine = Engine(lm)
    lm.engine.merging, lm.engine.compiler = merging, {**COMPILER, **options}
    return lm


def _stock(lm: LM) -> str:
    """Leave the model as Transformers made it; returns our kernel."""
    lm.engine.release()
    ours = attention.kernel(lm.model)
    attention.uninstall(lm.model, "sdpa")
    return ours


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


def _ours(setup: Setup, lm: LM, who: str, batch: int, prompt: int = PROMPT) -> Row:
    ids = _prompts(setup, lm.model.config.vocab_size, batch, prompt)
    positions = torch.arange(prompt, device=setup.device).expand(batch, -1)
    prefix = Prefix(ids=ids, columns=Columns.of(torch.ones_like(ids).bool(), positions))
    lm.engine.release()
    lm.engine.mode, lm.engine.attention = OURS.get(who, ("compiled", "split"))
    if setup.device.type != "cuda":
        lm.engine.mode = "plain"

    def texts(tokens: int) -> None:
        how = Decoding(max_new_tokens=tokens, min_new_tokens=tokens)
        lm.generate(lm.prefill(prefix), how)
        if lm.engine.refused:
            raise RuntimeError(lm.engine.refused)

    return _step(setup, lm.model, who, batch, texts, prompt)


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


def _step(
    setup: Setup,
    model: PreTrainedModel,
    who: str,
    batch: int,
    texts: Callable[[int], None],
    prompt: int = PROMPT,
) -> Row:
    """Time `texts(n)`, which writes n tokens a row."""
    at = _place(model, batch, prompt)
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        long = setup.timed(lambda: texts(LONG), repeats=3, warm=1)
        one = setup.timed(lambda: texts(1), repeats=3, warm=1)
    except Exception as error:  # a peer that cannot run is a line of the table, not the end of it
        return Row(who, {"seconds": None}, at, note=f"{type(error).__name__}: {str(error)[:200]}")
    seconds = (long.low - one.low) / (LONG - 1)
    floor = _bytes(model, batch, prompt) / setup.bandwidth
    figures = {"seconds": seconds, "ms_per_step": seconds * 1e3, "times_floor": seconds / floor}
    return Row(who, {**figures, "tokens_per_second": batch / seconds, "peak_gib": long.peak_gib}, at)


def _place(model: PreTrainedModel, batch: int, prompt: int) -> dict[str, str | int | float]:
    billions = round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 4)
    return {"billions": billions, "layers": model.config.num_hidden_layers, "batch": batch, "prompt": prompt}


def _floor(setup: Setup, model: PreTrainedModel, batch: int, prompt: int = PROMPT) -> Row:
    read = _bytes(model, batch, prompt)
    seconds = read / setup.bandwidth
    figures = {"seconds": seconds, "ms_per_step": seconds * 1e3, "times_floor": 1.0}
    at = _place(model, batch, prompt)
    return Row("floor", {**figures, "tokens_per_second": batch / seconds}, at, f"{read / GIB:.2f} GiB read once")


def _bytes(model: PreTrainedModel, batch: int, prompt: int) -> int:
    """Weights, of an embedding that is not also the head only what is looked up, and the middle step's cache."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size
    column = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    numbers = weights + batch * (prompt + LONG // 2) * column
    return int(numbers * next(model.parameters()).element_size())


def _prefills(setup: Setup, lm: LM) -> Iterator[Row]:
    """Reading prompts: what a shorter, latent prefix saves."""
    for length in PROMPTS:
        ids = _prompts(setup, lm.model.config.vocab_size, PREFILL_ROWS, length)
        positions = torch.arange(length, device=setup.device).expand(PREFILL_ROWS, -1)
        prefix = Prefix(ids=ids, columns=Columns.of(torch.ones_like(ids).bool(), positions))
        runs = {
            "latentwire prefill": lambda prefix=prefix: lm.prefill(prefix),
            "transformers prefill": lambda ids=ids: _plain(lm.model, ids),
        }
        for who, run in runs.items():
            at = _place(lm.model, PREFILL_ROWS, length)
            try:
                found = setup.timed(run, repeats=3, warm=1)
            except torch.OutOfMemoryError:
                yield Row(who, {"seconds": None}, at, note="out of memory")
                continue
            yield Row(who, {"seconds": found.seconds, "peak_gib": found.peak_gib}, at)


@torch.inference_mode()
def _plain(model: PreTrainedModel, ids: Tensor) -> None:
    model(input_ids=ids, use_cache=True, logits_to_keep=1)

"""Greedy decoding after a prompt, milliseconds a step, beside Transformers' `generate` and the memory floor.

A step is timed as (time for 65 tokens - time for 1) / 64, the same for all, so that reading the prompt does not
count; each time is the fastest of three. The floor is the time a copy takes for as many bytes as a step must read:
every weight once and the keys and values of every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latentwire.bench.decode_timing import COMPILED, OURS, floor, ours, peer, place, prompt_ids, tokenizer
from latentwire.bench.setup import BenchRow, Setup
from latentwire.lm.decoding.engine import COMPILER, Engine
from latentwire.lm.decoding.merged import Merging
from latentwire.lm.masks import attention
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix

BATCHES, MORE_BATCHES = (1, 32), (2, 4, 8, 16, 64)
PROMPTS, PREFILL_ROWS = (64, 512, 2048, 4096), 8
SWEEP_SHAPES: dict[str, tuple[str, ...]] = {"cuda": ("1b", "8b"), "cpu": ()}
LAYERS = 4
"""Of the model on which ways of compiling are compared: at its whole depth each would take a minute."""
WAYS: dict[str, tuple[tuple[int, ...], Merging, dict[str, Any]]] = {
    "nothing merged": ((1, 32), "none", {}),
    "attention merged": ((1,), "attention", {}),
    "all merged": ((1, 32), "all", {}),
    "attention merged, no dependent launch": ((1,), "attention", {"triton.enable_pdl": False}),
    "all merged, no dependent launch": ((32,), "all", {"triton.enable_pdl": False}),
    "attention merged, combo kernels": ((1,), "attention", {"combo_kernels": True}),
    "all merged, combo kernels": ((32,), "all", {"combo_kernels": True}),
    "all merged, products in Triton": ((32,), "all", {"max_autotune_gemm": True}),
}
"""Ways of compiling: at which batches, what is merged, options of the compiler."""
PARTS = ("modes", "compiled", "whole", "ways", "prefill")
"""All modes and the peers; the fastest mode, compiled by layer, and as a whole; ways of compiling, and the whole
model compiled by the best of them; reading prompts."""
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("transformers generate, dynamic cache", {}),
    "static": ("transformers generate, static cache", {"cache_implementation": "static"}),
}


def measure(setup: Setup) -> Iterator[BenchRow]:
    """Every mode and the peers at batch 1 and 32; with `sweep` also other batches, prompts, shapes and ways."""
    gpu = setup.device.type == "cuda"
    lm = LM(setup.model(), tokenizer(), name=setup.shape)
    if setup.wants("modes"):
        yield from _modes(setup, lm)
    if setup.only in ("compiled", "whole"):
        lm.engine.layerwise = setup.only == "compiled"
        for batch in BATCHES:
            yield floor(setup, lm.model, batch)
            yield ours(setup, lm, COMPILED, batch)
    if setup.wants("sweep"):
        yield from _sweep(setup, lm)
    if setup.only == "prefill" or setup.wants("sweep"):
        yield from _prefills(setup, lm)
    if setup.only == "ways" or (gpu and setup.wants("sweep") and not setup.only):
        yield from _ways(setup, lm)


def _modes(setup: Setup, lm: LM) -> Iterator[BenchRow]:
    gpu = setup.device.type == "cuda"
    for batch in BATCHES:
        yield floor(setup, lm.model, batch)
        for who, (mode, kernel) in OURS.items():
            if mode == "plain" or (gpu and (setup.sweep or (mode, kernel) != ("compiled", "sdpa"))):
                yield ours(setup, lm, who, batch)
    before = _stock(lm)
    for batch in BATCHES:
        for who, options in PEERS.values():
            yield peer(setup, lm.model, who, options, batch)
    attention.install(lm.model, before)


def _sweep(setup: Setup, lm: LM) -> Iterator[BenchRow]:
    """How a step grows with rows, prompt and model, in the mode that generation has by default."""
    who = "latentwire, captured graph" if setup.device.type == "cuda" else next(iter(OURS))
    for batch in sorted((*BATCHES, *MORE_BATCHES)):
        yield floor(setup, lm.model, batch)
        yield ours(setup, lm, who, batch)
    for prompt in PROMPTS:
        yield floor(setup, lm.model, PREFILL_ROWS, prompt)
        yield ours(setup, lm, who, PREFILL_ROWS, prompt)
    lm.engine.release()
    kind = setup.device.type if setup.device.type in SWEEP_SHAPES else "cpu"
    for shape in SWEEP_SHAPES[kind]:
        other = LM(replace(setup, shape=shape).model(), tokenizer(), name=shape)
        yield floor(setup, other.model, 1)
        yield ours(setup, other, who, 1)


def _ways(setup: Setup, lm: LM) -> Iterator[BenchRow]:
    """Ways of compiling on a few layers, then the best for each batch on the whole model."""
    few = LM(setup.model(num_hidden_layers=LAYERS), tokenizer(), name=setup.shape)
    for batch in BATCHES:
        yield floor(setup, few.model, batch)
        speeds: dict[str, float] = {}
        for way, (batches, _, _) in WAYS.items():
            if batch in batches:
                row = ours(setup, _as(few, way), way, batch)
                yield row
                if seconds := row.figures["seconds"]:
                    speeds[way] = seconds
        few.engine.release()
        if speeds:
            best = min(speeds, key=speeds.__getitem__)
            yield floor(setup, lm.model, batch)
            yield ours(setup, _as(lm, best), best, batch)
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
    kernel = attention.kernel(lm.model)
    attention.uninstall(lm.model, "sdpa")
    return kernel


def _prefills(setup: Setup, lm: LM) -> Iterator[BenchRow]:
    """Reading prompts: what a shorter, latent prefix saves."""
    for length in PROMPTS:
        ids = prompt_ids(setup, lm.model.config.vocab_size, PREFILL_ROWS, length)
        prefix = Prefix.of_tokens(ids.tolist(), device=setup.device)
        runs = {
            "latentwire prefill": lambda prefix=prefix: lm.prefill(prefix),
            "transformers prefill": lambda ids=ids: _plain(lm.model, ids),
        }
        for who, run in runs.items():
            at = place(lm.model, PREFILL_ROWS, length)
            try:
                timing = setup.timed(run, repeats=3, warm=1)
            except torch.OutOfMemoryError:
                yield BenchRow(who, {"seconds": None}, at, note="out of memory")
                continue
            yield BenchRow(who, {"seconds": timing.seconds, "peak_gib": timing.peak_gib}, at)


@torch.inference_mode()
def _plain(model: PreTrainedModel, ids: Tensor) -> None:
    model(input_ids=ids, use_cache=True, logits_to_keep=1)

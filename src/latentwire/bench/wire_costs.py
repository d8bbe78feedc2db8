"""`latentwire bench wire`: what a latent wire costs to train, and how long until the first token of an answer.

The wire is that of the template `latent-wire`: the model encodes with low-rank adapters of rank 64 and a
bidirectional mask, and the same model, frozen, reads the keys and values of some columns. Weights are random, so
the figures say nothing about understanding. Texts have one token for each byte.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from latentwire.bench import wire_first, wire_operations, wire_train
from latentwire.bench.decode_timing import tokenizer
from latentwire.bench.setup import BenchRow, Setup
from latentwire.lm.model import LM

PARTS = ("first", "train", "operations")
"""Time to the first token, a step of training, and (only where asked for) the operations that a step launches."""


def measure(setup: Setup) -> Iterator[BenchRow]:
    """Time to the first token, then training in the dtype of the setup and, on a GPU, as a study loads it."""
    model = setup.model().eval().requires_grad_(False)
    if setup.wants("first"):
        yield from wire_first.stock(setup, model)
    lm = LM(model, tokenizer(), name=setup.shape)
    if setup.only == "operations":
        yield from wire_operations.measure(setup, lm)
    if setup.wants("first"):
        yield from wire_first.measure(setup, lm)
    if not setup.wants("train"):
        return
    yield from wire_train.measure(setup, lm)
    if setup.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        model.float()
        yield from wire_train.measure(setup, lm, ", weights in float32 under autocast")

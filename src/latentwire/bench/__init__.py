"""Benchmarks: this engine beside what a user would otherwise run, in one process, and beside the machine's limit.

A benchmark is one module with a function `measure(setup) -> Iterator[BenchRow]` and a tuple `PARTS`, the names of
what can be measured alone. `NAMES` lists the benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from latentwire.bench.setup import BenchRow, Setup

NAMES = {
    "train": "prefix-LM training: packed rows beside padded batches, forward and backward",
    "weights": "a finetuning of all weights: steps and peak memory by what weights and optimizer are kept in",
    "loss": "cross-entropy and distillation without vocabulary-sized tensors",
    "decode": "greedy decoding, milliseconds a step beside the time to read the weights once",
    "prefill": "the first token: text and latents at hand, captured and not, beside stock Transformers",
    "wire": "a latent wire: a training step, and the time to the first token, cold and reused, beside the text",
    "score": "multiple choice, documents per second beside lm-eval's hf model",
    "scaling": "training and evaluation in 1 to N processes, one for each GPU, beside N times one process",
    "load": "from files to a model that reads, beside reading the files",
}
MODULES = {"train": "train_costs", "weights": "full_weights", "wire": "wire_costs"}
"""The modules of benchmarks whose names differ from theirs."""


def measure(name: str, setup: Setup) -> Iterator[BenchRow]:
    """The rows of a benchmark, each as soon as it has been measured."""
    rows: Iterator[BenchRow] = _module(name).measure(setup)
    yield from rows


def parts(name: str) -> tuple[str, ...]:
    """The parts of a benchmark that `Setup.only` may name."""
    names: tuple[str, ...] = _module(name).PARTS
    return names


def _module(name: str) -> ModuleType:
    return import_module(f"latentwire.bench.{MODULES.get(name, name)}")

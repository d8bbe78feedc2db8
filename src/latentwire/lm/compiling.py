"""Compiles a decoder's layers, so that a pass is a few fused kernels a layer and little Python.

Every layer is compiled in the pieces before, inside and after its attention, which stays ours: it is given masks,
memory and taps that differ from pass to pass. All layers of one kind share what is compiled for the first, sizes
are symbols, and PyTorch keeps kernels on disk from one process to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn

from latentwire.errors import UserError

BACKEND: str | Callable[..., Any] = "inductor"
VARIANTS = 64
"""How many variants of a function PyTorch may compile: with and without gradients, adapters, a single row, ..."""


_paused: ContextVar[bool] = ContextVar("paused", default=False)


@contextmanager
def paused() -> Iterator[None]:
    """Layers that run inside the block do so uncompiled, also when they run again in the backward pass.

    Compiled layers free what they have kept in their first backward pass ("donated buffers"), so whoever goes
    through a graph twice, as for the gradients of single terms, needs an uncompiled one.
    """
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


@contextmanager
def compiled(decoder: nn.Module) -> Iterator[None]:
    """Every layer that runs inside the block is compiled when it first does.

    Args:
        decoder: a Transformers decoder with its blocks in `layers`.
    """
    if _paused.get():
        yield
        return
    every: Any = decoder.layers
    layers = [layer for layer in every if "forward" not in vars(layer)]
    for layer in layers:
        layer.forward = MethodType(_forward(layer.__class__, BACKEND), layer)
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=8 * VARIANTS):
            yield
    finally:
        for layer in layers:
            del layer.forward


@cache
def _forward(kind: type[nn.Module], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    # The class's own function, with the layer as an argument: all layers share what is compiled for the first.
    made: Callable[..., Any] = torch.compile(kind.forward, dynamic=True, backend=backend)
    return made


def check(model: nn.Module, name: str) -> None:
    """Refuse a model whose layers cannot be compiled, and a machine that has no compiler.

    Raises:
        UserError: one sentence saying why.
    """
    placed: Any = getattr(model, "hf_device_map", None) or {}
    if len(set(placed.values())) > 1:
        raise UserError(f"compile: found {name} on several devices, expected a model on one of them.")
    if getattr(model, "is_quantized", False):
        raise UserError(f"compile: found {name} with quantized weights, expected 16 or 32 bits.")
    device = next(model.parameters()).device
    try:
        torch.compile(lambda x: x + 1, backend=BACKEND)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler for this device, in one of many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"compile: found no working compiler ({reason}), expected one, or compile: false."
        ) from error

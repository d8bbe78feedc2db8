"""Activation checkpointing of a decoder: a layer keeps its input only and runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputing(decoder: nn.Module) -> Iterator[None]:
    """Every layer that runs inside the block keeps its input only (Chen et al., 1604.06174).

    Unlike Transformers' own switch it works on models in evaluation mode, which frozen readers are in.

    Args:
        decoder: a Transformers decoder with its blocks in `layers`.
    """
    layers: Any = decoder.layers
    # Drawing again what dropout drew costs a copy of the generator's state for every layer.
    draws = any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in decoder.modules())
    before = [vars(layer).get("forward") for layer in layers]  # device maps put a forward of their own there
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward, draws)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _recomputed(forward: Callable[..., Any], draws: bool, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)

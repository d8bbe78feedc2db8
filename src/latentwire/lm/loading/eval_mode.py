"""A context in which a model does not train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block; afterwards each has the mode it had.

    A layer in training mode drops activations, and under activation checkpointing it keeps no cache.

    Example:
        >>> with evaluating(lm.model):
        ...     logits = lm.model(input_ids=ids).logits
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True

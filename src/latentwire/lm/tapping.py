"""Collects the hidden states after chosen layers of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.model import LM

States = dict[int, Tensor]
"""Hidden states after each layer, by layer index."""


def depth(lm: LM) -> int:
    """The number of decoder layers."""
    return int(lm.model.config.get_text_config().num_hidden_layers)


def chosen_layers(wanted: Sequence[int], count: int) -> tuple[int, ...]:
    """Layer indices from 0; negative ones count from the end of `count` layers.

    Raises:
        UserError: one does not exist, or they do not ascend.
    """
    for layer in wanted:
        if not -count <= layer < count:
            raise UserError(f"layers: found {layer}, expected one of the model's {count} layers.")
    chosen = tuple(layer % count for layer in wanted)
    if any(after <= before for before, after in pairwise(chosen)):
        raise UserError(f"layers: found {', '.join(map(str, wanted))}, expected ascending ones, each once.")
    return chosen


@contextmanager
def tapping(lm: LM, layers: Sequence[int]) -> Iterator[States]:
    """Yields a dict that fills with the layers' outputs `(B, Q, D)` during a pass inside the block."""
    states: States = {}

    def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, returned: Any) -> None:
            states[layer] = returned[0] if isinstance(returned, tuple) else returned

        return hook

    modules: Any = lm.model.get_decoder().layers
    handles = [modules[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()

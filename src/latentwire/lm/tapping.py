"""Hidden states behind chosen layers of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.model import LM

States = dict[int, Tensor]
"""By layer, hidden states behind it."""


def depth(lm: LM) -> int:
    """How many layers a model has."""
    return int(lm.model.config.get_text_config().num_hidden_layers)


def chosen_layers(wanted: Sequence[int], count: int) -> tuple[int, ...]:
    """These of `count` layers, from 0, negative ones from the end.

    Raises:
        UserError: one does not exist, or they do not ascend: what is made of them would be another layer's.
    """
    for each in wanted:
        if not -count <= each < count:
            raise UserError(f"layers: found {each}, expected one of the model's {count} layers.")
    found = tuple(each % count for each in wanted)
    if any(after <= before for before, after in pairwise(found)):
        raise UserError(f"layers: found {', '.join(map(str, wanted))}, expected ascending ones, each once.")
    return found


@contextmanager
def tapping(lm: LM, layers: Sequence[int]) -> Iterator[States]:
    """Collects what the layers return, `(B, Q, D)`, of one pass inside the block."""
    found: States = {}

    def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, returned: Any) -> None:
            found[layer] = returned[0] if isinstance(returned, tuple) else returned

        return hook

    modules: Any = lm.model.get_decoder().layers
    handles = [modules[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

"""The largest attention weight that each column receives, as a measure of how much a reader needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import Memory
from latentwire.lm.prefix import Prefix

if TYPE_CHECKING:
    from latentwire.lm.model import LM


@torch.no_grad()
def attended(lm: LM, prefix: Prefix, queries: Tensor) -> tuple[Memory, list[Tensor]]:
    """Read a prefix and record which columns some of its queries attend to.

    Full attention weights are made, `(B, heads, P, P)` per layer, one layer at a time.

    Args:
        queries: `(B, P)`, True for the columns whose attention is recorded.

    Returns:
        The keys and values of `lm.memorize`, and for every layer `(B, H, P)`: the largest weight that any recorded
        column gives each column, over the query heads that share one of the H key heads.

    Raises:
        UserError: as `lm.memorize`, or the model has no eager attention of ours.
    """
    lm.rotary  # noqa: B018  # it probes the model when it is first made, and that pass is not to be watched
    received: dict[int, Tensor] = {}

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        weights: Tensor = output[1]
        received[module.layer_idx] = weights.masked_fill(~queries[:, None, :, None], 0).amax(2)  # type: ignore[index]

    layers = [each for each in lm.model.modules() if hasattr(each, "layer_idx") and hasattr(each, "scaling")]
    before = attention.install(lm.model, "eager")
    hooks = [each.register_forward_hook(watch) for each in layers]
    try:
        _, memory = lm.memorize(prefix)
    finally:
        for hook in hooks:
            hook.remove()
        attention.uninstall(lm.model, before)
    heads = [each.shape[1] for each in memory.keys]
    return memory, [received[at].unflatten(1, (count, -1)).amax(2).float() for at, count in enumerate(heads)]

"""A learned prefix: keys and values that every token attends to, as PEFT's prefix tuning has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentwire.lm.masks.reading import Columns, Memory, Reading


class PrefixTuning(nn.Module):
    """Keys and values of N virtual tokens in every layer; they alone are trained (Li and Liang, 2101.00190).

    Their keys are used as they were learned, without rotation. The real tokens come after them, so the model
    rotates a token at position p by p + N, as PEFT does. Everywhere else positions count from the first real
    token; there the virtual tokens have positions -N to -1, are visible to every token and belong to no block.

    Args:
        weight: `(N, 2 * layers * heads * D)` as PEFT stores it: for each virtual token, layer by layer, the keys
            and then the values of all heads.
        layers: how many layers the model has.
        heads: how many key/value heads a layer has.
    """

    def __init__(self, weight: Tensor, *, layers: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.layers, self.heads = layers, heads

    @property
    def tokens(self) -> int:
        """N, how many virtual tokens there are."""
        return self.weight.shape[0]

    def before(self, reading: Reading) -> Reading:
        """`reading` with the virtual tokens before its other memory."""
        shown = reading.columns.positions
        positions = torch.arange(-self.tokens, 0, device=shown.device).expand(shown.shape[0], -1)
        pairs = self.weight.view(self.tokens, 2 * self.layers, self.heads, -1).permute(1, 2, 0, 3)
        rows = [pair.expand(shown.shape[0], -1, -1, -1) for pair in pairs]
        columns = Columns.of(torch.ones_like(positions, dtype=torch.bool), positions)
        return reading.after(Memory(tuple(rows[0::2]), tuple(rows[1::2]), columns))

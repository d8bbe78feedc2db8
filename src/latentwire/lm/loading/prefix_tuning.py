"""A learned prefix: keys and values before every token, as PEFT's prefix tuning has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentwire.lm.masks.reading import Columns, Memory, Reading


class PrefixTuning(nn.Module):
    """Keys and values of a few virtual tokens in every layer, all that is trained (Li and Liang, 2101.00190).

    Their keys are used as they were learned: nothing rotates them. The tokens come behind them, so the model
    rotates a token at position p by p + `tokens`, as PEFT does. Everywhere else positions go on counting
    from the first real token; there the virtual tokens stand at -`tokens` to -1, seen by all and part of no block.

    Args:
        weight: `(N, 2 * layers * heads * D)` as PEFT stores it: per virtual token, layer by layer, the key and the
            value of every head.
        layers: of the model. heads: its key/value heads.
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
        """`reading` with the virtual tokens before whatever it remembers."""
        shown = reading.columns.positions
        positions = torch.arange(-self.tokens, 0, device=shown.device).expand(shown.shape[0], -1)
        pairs = self.weight.view(self.tokens, 2 * self.layers, self.heads, -1).permute(1, 2, 0, 3)
        rows = [pair.expand(shown.shape[0], -1, -1, -1) for pair in pairs]
        columns = Columns.of(torch.ones_like(positions, dtype=torch.bool), positions)
        return reading.behind(Memory(tuple(rows[0::2]), tuple(rows[1::2]), columns))

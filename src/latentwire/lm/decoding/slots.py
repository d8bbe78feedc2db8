"""A static cache in which every row has its own write position.

Row r holds `lengths[r]` keys side by side, whatever the prefix looked like: a memory's keys come first, and
padding and columns that no later token may see are left out. A new token is written after its row's last key. So
no step copies the cache, rows of any length share a batch, and a row that has ended makes room for another prompt.

Shapes: B slots, C columns of capacity, L layers, H key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.lm.masks.reading import SHARED
from latentwire.lm.prefix import Prefilled

HISTORY = 16
"""Steps of a captured graph between two reads of its tokens by the host."""


class Slots:
    """B rows of at most C columns, with the state of the text that is generated in each.

    Attributes:
        keys, values: L tensors `(B, H, C, D)`, rotated.
        heads: L tensors `(B, H, C)`, which keys each head has; empty where every head has all of them.
        positions: `(B, C)`, of the keys.
        lengths: `(B,)`, number of valid keys.
        tokens: `(B,)`, the token to read next. next_position: `(B,)`, its position.
        room: `(B,)`, how many more steps the row may take; at 0 it does not change.
        held: `(B,)`, how many more tokens before the row may end.
        history: `(B, HISTORY)`, tokens chosen since the host last read them; cursor: `(1,)`, how many.
        logits: `(B, V)`, of the last step.
    """

    def __init__(self, like: Prefilled, rows: int, capacity: int) -> None:
        def zeros(*shape: int, of: Tensor) -> Tensor:
            # Zeros: unwritten columns are multiplied by an attention weight of zero, and 0 * NaN would be NaN.
            return torch.zeros(shape, dtype=of.dtype, device=of.device)

        at = like.next_position
        self.rows, self.capacity = rows, capacity
        layers = layers_of(like)
        self.keys = [zeros(rows, key.shape[1], capacity, key.shape[3], of=key) for key, _ in layers]
        self.values = [zeros(rows, value.shape[1], capacity, value.shape[3], of=value) for _, value in layers]
        self.positions = zeros(rows, capacity, of=at)
        self.lengths, self.next_position = zeros(rows, of=at), zeros(rows, of=at)
        self.tokens, self.room, self.held = zeros(rows, of=at), zeros(rows, of=at), zeros(rows, of=at)
        self.history, self.cursor = zeros(rows, HISTORY, of=at), zeros(1, of=at)
        self.logits = zeros(rows, like.logits.shape[1], of=like.logits)
        self.every = torch.arange(rows, device=at.device)
        memory = like.reading.memory
        by_head = memory is not None and bool(memory.heads)
        self.heads = [key.new_ones(key.shape[:3], dtype=torch.bool) for key in self.keys] if by_head else []

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(tensor.numel() * tensor.element_size() for tensor in [*self.keys, *self.values])

    def fits(self, like: Prefilled) -> bool:
        """Whether keys and values of this shape, dtype and device can be stored."""
        layers, memory = layers_of(like), like.reading.memory
        by_head = memory is not None and bool(memory.heads)
        return (
            by_head == bool(self.heads)
            and len(layers) == len(self.keys)
            and all(
                (key.shape[1], key.shape[3], value.shape[3]) == (mine.shape[1], mine.shape[3], other.shape[3])
                and (key.dtype, key.device, value.dtype) == (mine.dtype, mine.device, other.dtype)
                for (key, value), mine, other in zip(layers, self.keys, self.values, strict=True)
            )
        )

    def grow(self, capacity: int) -> None:
        """Add columns to every row and keep its content; keys and values become new tensors."""
        more = capacity - self.capacity
        self.keys = [nn.functional.pad(key, (0, 0, 0, more)) for key in self.keys]
        self.values = [nn.functional.pad(value, (0, 0, 0, more)) for value in self.values]
        self.heads = [nn.functional.pad(seen, (0, more), value=True) for seen in self.heads]
        self.positions = nn.functional.pad(self.positions, (0, more))
        self.capacity = capacity

    def free(self, slots: Sequence[int]) -> None:
        """Empty these rows; they take no more steps."""
        index = torch.tensor(slots, device=self.lengths.device)
        for tensor in (self.lengths, self.next_position, self.room, self.held):
            tensor.index_fill_(0, index, 0)

    def keep(self, slots: Sequence[int]) -> None:
        """Give up all rows but these, which become the rows 0, 1, 2, ...; tensors become new ones."""
        index = torch.tensor(slots, dtype=torch.long, device=self.lengths.device)
        for name in ("keys", "values", "heads"):
            setattr(self, name, [each[index.to(each.device)] for each in getattr(self, name)])
        for name in ("positions", "lengths", "next_position", "tokens", "room", "held", "history", "logits"):
            setattr(self, name, getattr(self, name)[index])
        self.rows, self.every = len(slots), self.every[: len(slots)]

    def admit(
        self,
        prefilled: Prefilled,
        rows: Sequence[int],
        slots: Sequence[int],
        tokens: Tensor,
        room: Sequence[int],
        held: Sequence[int],
    ) -> None:
        """Copy rows of a prefill into slots.

        Args:
            tokens: `(len(rows),)`, the first token of each row. room, held: see the class.
        """
        device = self.lengths.device
        # Row `source[n]` of the prefill goes to slot `target[n]`.
        source, target = torch.tensor(rows, device=device), torch.tensor(slots, device=device)
        order, lengths = packed(prefilled, source)
        width = order.shape[1]
        in_place = bool((order == torch.arange(width, device=device)).all())
        columns = prefilled.reading.columns
        memory = prefilled.reading.memory
        if memory is not None:
            columns = memory.columns.append(columns)
        self.positions[target, :width] = columns.positions[source].gather(1, order)
        for layer, (key, value) in enumerate(layers_of(prefilled)):
            pairs = ((self.keys[layer], key), (self.values[layer], value))
            for which, (mine, theirs) in enumerate(pairs):
                if memory is not None:
                    before = (memory.keys, memory.values)[which][layer]
                    theirs = torch.cat([before.to(theirs), theirs], 2)
                theirs = theirs[source.to(theirs.device)]
                if not in_place:
                    index = order.to(theirs.device)[:, None, :, None]
                    theirs = theirs.gather(2, index.expand(-1, theirs.shape[1], -1, theirs.shape[3]))
                mine[target.to(mine.device), :, :width] = theirs[:, :, :width]
        for mine, seen in zip(self.heads, memory.heads if memory is not None else (), strict=True):
            # What is written later, after a row's last key, is seen by every head.
            own = nn.functional.pad(seen, (0, columns.width - seen.shape[2]), value=True)[source.to(seen.device)]
            mine[target.to(mine.device)] = True
            index = order.to(own.device)[:, None].expand(-1, own.shape[1], -1)
            later = torch.arange(width, device=own.device) >= lengths[:, None, None].to(own.device)
            mine[target.to(mine.device), :, :width] = (own.gather(2, index) | later).to(mine.device)
        self.lengths[target] = lengths
        self.next_position[target] = prefilled.next_position[source]
        self.tokens[target] = tokens.to(self.tokens)
        self.room[target] = torch.tensor(room, device=device)
        self.held[target] = torch.tensor(held, device=device)


def layers_of(prefilled: Prefilled) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer."""
    found: Any = prefilled.cache.layers
    return [(layer.keys, layer.values) for layer in found]


def packed(prefilled: Prefilled, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of some rows of a prefill that a later token may see, memory first.

    Returns:
        Column indices `(n, widest)`, each row's visible columns first and in order, and their counts `(n,)`.
    """
    seen = seen_later(prefilled)[rows]
    lengths = seen.sum(1)
    widest = max(1, int(lengths.max()))
    return torch.sort((~seen).to(torch.int8), dim=1, stable=True).indices[:, :widest], lengths


def seen_later(prefilled: Prefilled) -> Tensor:
    """`(B, M + P)`: columns that a later token may see: real ones of every document of the row."""
    columns, memory = prefilled.reading.columns, prefilled.reading.memory
    if memory is not None:
        columns = memory.columns.append(columns)
    return columns.valid & (columns.documents == SHARED)

"""Masks as data: who attends to whom, carried through one forward pass.

A `Reading` describes the columns of the attention matrix (position, validity, block, document of
each) and travels as the forward keyword `reading=` down to the attention functions of
`latentwire.lm.masks.attention`. A keyword is recomputed together with its layer, so activation
checkpointing sees the same mask in the backward pass; state kept outside the call would not be.

Shapes: B rows, Q query columns, K key columns, M memory columns, H key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.prompts import CAUSAL

Made = TypeVar("Made")
Rows = Tensor | slice
"""Indices of rows, or a range of them, which copies nothing."""

SHARED = -1
"""Document id of a column that all documents of its row can see."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of B rows; every tensor is `(B, T)`.

    Attributes:
        valid: False on padding.
        positions: what masks, windows and rotations follow.
        blocks: columns with equal ids >= 0 see each other; a `CAUSAL` column sees only earlier ones.
        documents: a column sees its own document and `SHARED` columns, nothing else.
    """

    valid: Tensor
    positions: Tensor
    blocks: Tensor
    documents: Tensor

    @classmethod
    def of(
        cls, valid: Tensor, positions: Tensor, blocks: Tensor | None = None, documents: Tensor | None = None
    ) -> Columns:
        """Columns that are causal and in one shared document unless given otherwise."""
        shared = torch.full_like(positions, SHARED)
        return cls(
            valid=valid,
            positions=positions,
            blocks=torch.full_like(positions, CAUSAL) if blocks is None else blocks,
            documents=shared if documents is None else documents,
        )

    @property
    def width(self) -> int:
        return self.positions.shape[1]

    @property
    def end(self) -> Tensor:
        """`(B,)`: one more than the highest valid position, 0 where there is none."""
        # One extra column, since rows of width 0 have no maximum.
        ends = torch.where(self.valid, self.positions + 1, 0)
        return torch.nn.functional.pad(ends, (0, 1)).amax(1)

    @property
    def last(self) -> Tensor:
        """`(B,)`: the column that predicts the next token: the last valid one with the highest position."""
        order = self.positions * self.width + torch.arange(self.width, device=self.positions.device)
        return torch.where(self.valid, order, -1).argmax(1)

    def append(self, other: Columns) -> Columns:
        """These columns followed by `other`'s."""
        return Columns(
            **{f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(self)}
        )

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """The rows of all parts, the shorter ones padded on the right."""
        width = max(part.width for part in parts)
        padded = [_pad(part, width) for part in parts]
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in padded]) for f in fields(cls)})

    def slice(self, start: int, stop: int) -> Columns:
        return Columns(**{f.name: getattr(self, f.name)[:, start:stop] for f in fields(self)})

    def select(self, rows: Rows) -> Columns:
        """The rows with these indices, in this order; indices may repeat."""
        return Columns(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True, eq=False)
class Memory:
    """Keys and values that come before every token.

    In a `Prefix` the keys are not rotated; `LM` rotates them once, by `columns.positions`, before they enter a
    `Reading`.

    Attributes:
        keys, values: one `(B, H, M, D)` per layer.
        columns: `(B, M)`.
        heads: one `(B, H, M)` per layer, which columns each key/value head has; empty where every head has all.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    columns: Columns
    heads: tuple[Tensor, ...] = ()

    def select(self, rows: Rows) -> Memory:
        return Memory(
            tuple(key[rows] for key in self.keys),
            tuple(value[rows] for value in self.values),
            self.columns.select(rows),
            tuple(seen[rows] for seen in self.heads),
        )

    @classmethod
    def join(cls, parts: Sequence[Memory]) -> Memory:
        """The rows of all parts, the shorter ones padded on the right."""
        pairs = (
            zip(*[part.keys for part in parts], strict=True),
            zip(*[part.values for part in parts], strict=True),
        )
        keys, values = (tuple(stacked(each, 2) for each in layers) for layers in pairs)
        heads: tuple[Tensor, ...] = ()
        if any(part.heads for part in parts):
            heads = tuple(stacked(each, 2) for each in zip(*[part._every_head() for part in parts], strict=True))
        return cls(keys, values, Columns.join([part.columns for part in parts]), heads)

    def append(self, other: Memory) -> Memory:
        """This memory followed by `other`."""
        pairs = [zip(self.keys, other.keys, strict=True), zip(self.values, other.values, strict=True)]
        keys, values = (tuple(torch.cat([mine, its.to(mine)], 2) for mine, its in each) for each in pairs)
        heads: tuple[Tensor, ...] = ()
        if self.heads or other.heads:
            both = zip(self._every_head(), other._every_head(), strict=True)
            heads = tuple(torch.cat([mine, its.to(mine.device)], 2) for mine, its in both)
        return Memory(keys, values, self.columns.append(other.columns), heads)

    def _every_head(self) -> tuple[Tensor, ...]:
        """`heads`, made where it is empty."""
        valid = self.columns.valid[:, None]
        return self.heads or tuple(valid.to(key.device).expand(-1, key.shape[1], -1) for key in self.keys)


def stacked(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Rows of several tensors stacked, the shorter ones padded with zeros along `dim`."""
    shape = list(parts[0].shape)
    shape[0], shape[dim] = sum(len(part) for part in parts), max(part.shape[dim] for part in parts)
    made, start = parts[0].new_zeros(shape), 0
    for part in parts:
        made[start : start + len(part)].narrow(dim, 0, part.shape[dim]).copy_(part)
        start += len(part)
    return made


@dataclass(frozen=True)
class LayerRange:
    """The layers `start..stop-1` in which blocks count; all others stay causal."""

    start: int
    stop: int

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """`"4-11"` (both included) or `"4"`.

        Raises:
            UserError: anything else.
        """
        first, _, last = text.partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
            raise UserError(f"layers: found {text!r}, expected a layer or a range such as 0-5.")
        return cls(int(first), int(last or first) + 1)

    def __str__(self) -> str:
        return f"{self.start}-{self.stop - 1}"


class Enough(Exception):
    """Ends a pass after the last keys and values that are wanted (`Tap.last`)."""


@dataclass(eq=False)
class Tap:
    """Collects every layer's keys (rotated) and values `(B, H, K, D)` as a pass computes them.

    A pass without a cache keeps neither, and a cache does not train. When activation checkpointing recomputes a
    layer, nothing is taken: the graph holds the tensors of the first pass.

    Attributes:
        last: the pass ends with this layer's keys and values, and gives no states; None reads to the end.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    last: int | None = None
    _closed: bool = False

    def take(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Raises `Enough` where nothing after this layer's keys and values is wanted."""
        if not self._closed:
            self.keys[layer], self.values[layer] = key, value
            if layer == self.last:
                raise Enough

    def close(self) -> None:
        """Let go of everything, for good.

        A checkpointed layer keeps the arguments of its call, this tap among them, and autograd keeps the layer: as
        long as the tap keeps what the layer computed, a pass that never gets to its backward is never freed.
        """
        self.keys.clear()
        self.values.clear()
        self._closed = True


@dataclass(frozen=True, eq=False)
class Reading:
    """The mask of one forward pass.

    Attributes:
        columns: `(B, T)`, all columns of the rows, those in the cache first; the last Q of them are the queries.
        layers: where blocks count; None for all layers.
        memory: keys and values before the columns, keys rotated.
        spans: per layer, the `(offset, length)` of the columns that a cache returns, if it does not return all.
        tap: collects the columns' own keys and values.
        plain: the columns are those of a `Prefix` that is `plain`, and the states of padding are never read.
    """

    columns: Columns
    layers: LayerRange | None = None
    memory: Memory | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    tap: Tap | None = None
    plain: bool = False
    _masks: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False)

    @property
    def asked(self) -> bool:
        """Whether any layer has asked who sees whom."""
        return bool(self._masks)

    def leave(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Give a layer's own keys and values to the tap, if there is one."""
        if self.tap is not None:
            self.tap.take(layer, key, value)

    def remember(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, H, M + K, D)` of a layer with the memory before them."""
        if self.memory is None:
            return key, value
        memory_key, memory_value = self.memory.keys[layer], self.memory.values[layer]
        return (
            torch.cat([memory_key.to(key), key], 2),
            torch.cat([memory_value.to(value), value], 2),
        )

    def visible(self, queries: int, keys: int, layer: int, window: int | None) -> Tensor:
        """`(B, 1, Q, M + keys)`, true where a query sees a key.

        A query sees smaller positions (at an equal position: earlier columns) and its own block, within its
        document and the sliding window. It sees itself even if it is padding, because a softmax over nothing is
        NaN.

        Args:
            queries: Q. keys: key columns that the layer holds, without the memory.
            window: sliding window in positions, own position included; None for full attention.
        """
        name = self.seen(queries, keys, layer, window)
        return self.once(name, lambda: self._build(*name))

    def seen(
        self, queries: int, keys: int, layer: int, window: int | None
    ) -> tuple[int, int, bool, int, int | None]:
        """What layers have in common that share what `visible` returns."""
        return queries, keys, self.both_ways(layer), self.spans[layer][0] if self.spans else 0, window

    @property
    def by_layer(self) -> bool:
        """Whether the columns of a memory differ by head, and so every layer has a mask of its own."""
        return self.memory is not None and bool(self.memory.heads)

    def by_head(self, see: Tensor, layer: int, heads: int) -> Tensor:
        """What `visible` returned, `(B, heads, Q, K)` where a memory's columns differ by head.

        Args:
            heads: query heads of the layer.
        """
        if self.memory is None or not self.by_layer:
            return see
        has = self.memory.heads[layer].to(see.device)
        has = has.repeat_interleave(heads // has.shape[1], 1)[:, :, None]
        width = has.shape[3]
        return torch.cat([see[..., :width] & has, see[..., width:].expand(-1, heads, -1, -1)], 3)

    def once(self, name: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """The value of `make`, cached by name: many layers share a mask."""
        if name not in self._masks:
            self._masks[name] = make()
        made: Made = self._masks[name]
        return made

    def whole(self, queries: int, keys: int) -> bool:
        """Whether a layer's queries and keys are exactly the columns, with no memory and no cache before them.

        Only then may a kernel read the columns itself; otherwise `visible` is the mask.
        """
        return self.memory is None and queries == keys == self.columns.width

    def causal(self, queries: int, keys: int, window: int | None) -> bool:
        """Whether a kernel's own causal mask is right at every real column, so that none has to be made.

        Args: as of `visible`; a window that no row is longer than hides nothing.
        """
        return self.plain and self.whole(queries, keys) and (window is None or queries <= window)

    def both_ways(self, layer: int) -> bool:
        """Whether blocks count in a layer."""
        return self.layers is None or layer in self.layers

    def _build(self, queries: int, keys: int, both_ways: bool, offset: int, window: int | None) -> Tensor:
        total = self.columns.width
        query = self.columns.slice(total - queries, total)
        # A static cache returns more columns than are written; the rest are invalid.
        key = _pad(self.columns.slice(offset, min(offset + keys, total)), keys)
        index = torch.arange(offset, offset + keys, device=key.valid.device)
        if self.memory is not None:
            memory = self.memory.columns
            key = memory.append(key)
            index = torch.cat([torch.arange(-memory.width, 0, device=index.device), index])
        own = torch.arange(total - queries, total, device=index.device)
        at, of = query.positions[:, :, None], key.positions[:, None, :]
        see = (of < at) | ((of == at) & (index[None, None, :] <= own[None, :, None]))
        if both_ways:
            block = query.blocks[:, :, None]
            see = see | ((block == key.blocks[:, None, :]) & (block != CAUSAL))
        document = key.documents[:, None, :]
        see = see & ((document == query.documents[:, :, None]) | (document == SHARED))
        if window is not None:
            see = see & ((at - of).abs() < window)
        see = see & key.valid[:, None, :]
        return (see | (index[None, None, :] == own[None, :, None]))[:, None]

    def extend(self, columns: Columns) -> Reading:
        """The reading of a pass that continues this one with `columns` as queries."""
        return replace(self, columns=self.columns.append(columns), plain=False, _masks={})

    def after(self, memory: Memory) -> Reading:
        """The same reading with `memory` (keys rotated) before its own memory."""
        return replace(self, memory=memory if self.memory is None else memory.append(self.memory), _masks={})


def _pad(columns: Columns, width: int) -> Columns:
    missing = width - columns.width
    if missing <= 0:
        return columns
    nothing = torch.zeros_like(columns.positions[:, :1]).expand(-1, missing)
    return columns.append(Columns.of(nothing.bool(), nothing))

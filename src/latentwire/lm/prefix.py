"""The prefix of an answer, before (`Prefix`) and after (`Prefilled`) a model has read it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from latentwire.lm.masks.reading import Columns, LayerRange, Memory, Reading, stacked
from latentwire.lm.prompts import CAUSAL


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefix:
    """B prefixes of P columns each: tokens or embeddings, with who sees whom.

    Attributes:
        ids: `(B, P)`, or embeddings: `(B, P, D)`; exactly one of the two, and P >= 1.
        columns: `(B, P)` validity, positions, blocks and documents.
        layers: the layers in which blocks count; None for all.
        memory: keys (not rotated) and values before the first column.
        leaky: the answer joins the block of the prompt's first column and so reads its own labels. It exists for
            the `leaky` wire and the audit.
        plain: every row is causal and one document, its positions count from 0 and padding is on the right only;
            then a kernel's own causal mask is right at every real column. Set by the code that makes the columns,
            since reading it from them would synchronize with the device.

    Example:
        >>> import latentwire as lw
        >>> lw.Prefix.of_tokens([[5, 6, 7], [8, 9]]).columns.valid.sum(1).tolist()
        [3, 2]
    """

    ids: Tensor | None = None
    embeddings: Tensor | None = None
    columns: Columns
    layers: LayerRange | None = None
    memory: Memory | None = None
    leaky: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        content = self.embeddings if self.ids is None else self.ids
        if content is None or (self.ids is not None and self.embeddings is not None):
            raise ValueError("a Prefix holds either ids or embeddings")
        if content.shape[:2] != self.columns.positions.shape or content.shape[1] < 1:
            raise ValueError(
                f"content {tuple(content.shape)} does not match columns {tuple(self.columns.positions.shape)}"
            )

    @classmethod
    def of_tokens(
        cls,
        rows: Sequence[Sequence[int]],
        blocks: Sequence[Sequence[int]] | None = None,
        *,
        device: torch.device | str = "cpu",
        layers: LayerRange | None = None,
        leaky: bool = False,
        multiple: int = 1,
    ) -> Prefix:
        """Token rows of any mix of lengths, padded on the right.

        Args:
            rows: token ids.
            blocks: one block id per token (`CAUSAL` or >= 0); causal if None.
            multiple: the number of columns is padded to a multiple of it.
        """
        ids = pad_rows(rows, 0, multiple).to(device)
        valid = pad_rows([[1] * len(row) for row in rows], 0, multiple).bool().to(device)
        ahead = pad_rows(blocks, CAUSAL, multiple).to(device) if blocks is not None else None
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        plain = all(block == CAUSAL for row in blocks or () for block in row)
        columns = Columns.of(valid, positions, ahead)
        return cls(ids=ids, columns=columns, layers=layers, leaky=leaky, plain=plain)

    def select(self, rows: Tensor) -> Prefix:
        """The prefixes with these row indices, in this order."""
        return replace(
            self,
            ids=None if self.ids is None else self.ids[rows],
            embeddings=None if self.embeddings is None else self.embeddings[rows],
            columns=self.columns.select(rows),
            memory=None if self.memory is None else self.memory.select(rows),
        )

    def trimmed(self) -> Prefix:
        """The same without the columns on the right that are padding in every row; at least one column stays."""
        real = self.columns.valid.any(0).nonzero()
        width = int(real[-1]) + 1 if len(real) else 1
        return replace(
            self,
            ids=None if self.ids is None else self.ids[:, :width],
            embeddings=None if self.embeddings is None else self.embeddings[:, :width],
            columns=self.columns.slice(0, width),
        )

    def joins(self, other: Prefix) -> bool:
        """Whether both can be rows of one batch."""
        return (
            (self.ids is None) == (other.ids is None)
            and (self.memory is None) == (other.memory is None)
            and (self.layers, self.leaky) == (other.layers, other.leaky)
        )

    @classmethod
    def join(cls, prefixes: Sequence[Prefix]) -> Prefix:
        """The rows of prefixes that `joins` each other, padded on the right."""
        first = prefixes[0]
        if len(prefixes) == 1:
            return first
        ids = [prefix.ids for prefix in prefixes if prefix.ids is not None]
        embeddings = [prefix.embeddings for prefix in prefixes if prefix.embeddings is not None]
        memories = [prefix.memory for prefix in prefixes if prefix.memory is not None]
        return cls(
            ids=stacked(ids, 1) if ids else None,
            embeddings=stacked(embeddings, 1) if embeddings else None,
            columns=Columns.join([prefix.columns for prefix in prefixes]),
            layers=first.layers,
            memory=Memory.join(memories) if memories else None,
            leaky=first.leaky,
            plain=all(prefix.plain for prefix in prefixes),
        )

    @property
    def next_position(self) -> Tensor:
        """`(B,)`: the position of the first token after the prefix."""
        end = self.columns.end
        return end if self.memory is None else torch.maximum(end, self.memory.columns.end)


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefilled:
    """A prefix that a model has read.

    Scoring or generating from it leaves it unchanged, so one prefill serves any number of continuations.

    Attributes:
        cache: keys and values of the P columns.
        logits: `(B, V)`, for the first token after the prefix.
        reading: the columns read so far, memory included.
        next_position: `(B,)`, of the first token after the prefix.
    """

    cache: DynamicCache
    logits: Tensor
    reading: Reading
    next_position: Tensor

    @property
    def rows(self) -> int:
        return self.logits.shape[0]

    def fork(self) -> DynamicCache:
        """A cache that grows on its own: layers append by concatenation, so tensors are shared."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache


@dataclass(frozen=True, eq=False)
class Forced:
    """The states of teacher forcing that predict the answer tokens.

    Attributes:
        hidden: `(B, A, D)`, final hidden states.
        labels: `(B, A)`, -100 where there is no label.
    """

    hidden: Tensor
    labels: Tensor


STEADY = 16
"""Training batches are padded to multiples of this many columns: kernels are planned anew for every new shape,
which takes longer than a whole step of a small model."""


def pad_rows(rows: Sequence[Sequence[int]], fill: int, multiple: int = 1) -> Tensor:
    """`(B, longest)` int64, rows padded on the right, to a multiple of columns; at least one column."""
    width = rounded(max(1, max(map(len, rows), default=1)), multiple)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; what the device is doing meanwhile is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def rounded(width: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-width // multiple) * multiple

"""`ScoredWire`: keep the keys and values of a context that score highest, without training anything."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import PrivateAttr
from torch import Tensor

from latentwire.lm.masks.reading import Memory
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.wires.latent.adapters import NativeConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_wire import LatentWireBase
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentConfig, LatentModules
from latentwire.wires.size import Sized

if TYPE_CHECKING:
    from latentwire.lm.model import LM


class ScoredWire(LatentWireBase, Sized):
    """Keeps the columns of the context's own keys and values that score highest.

    A method is one subclass that defines `score`. The reader reads the context causally; in every layer each
    key/value head keeps the columns that `score` ranks first. Kept columns keep their positions: where a head's
    columns are not the evenly spread ones that the message names, its keys are rotated ahead by the difference. A
    sliding window counts from the evenly spread ones.

    Attributes:
        budget: `uniform` keeps the same number of columns in every head; `head` keeps as many in a layer, and its
            heads share them by score, each at least a fifth of the uniform number (Ada-KV, 2407.11550).

    Example:
        >>> class KeyNorm(ScoredWire):  # in mypress.py; then --wire mypress:KeyNorm,ratio=4
        ...     def score(self, lm, prefix):
        ...         return [-keys.norm(dim=-1) for keys in self.memory(lm, prefix).keys]
    """

    budget: Literal["uniform", "head"] = "uniform"
    _lm: LM | None = PrivateAttr(None)
    _read: tuple[Prefix, Memory] | None = PrivateAttr(None)

    @abstractmethod
    def score(self, lm: LM, prefix: Prefix) -> Sequence[Tensor]:
        """How much each column matters; the highest scores are kept.

        Args:
            lm: the reader. prefix: B contexts of P columns, as token ids that are read causally.

        Returns:
            For each layer `(B, H, P)`, of H key/value heads, or `(B, 1, P)` for all heads alike. Scores of padding
            are ignored.
        """

    def memory(self, lm: LM, prefix: Prefix) -> Memory:
        """Every layer's keys (not rotated) and values `(B, H, P, D)` of the prefix, computed once a batch."""
        if self._read is None or self._read[0] is not prefix:
            self._read = (prefix, lm.memorize(prefix, states=False)[1])
        return self._read[1]

    def read(self, lm: LM, prefix: Prefix) -> tuple[Memory, Sequence[Tensor]]:
        """Keys and values with their scores. Override it where one pass gives both."""
        return self.memory(lm, prefix), self.score(lm, prefix)

    def bind(self, lm: LM) -> Self:
        """Make ready for a reader.

        Raises:
            UserError: the model rotates keys in a way not known here.
        """
        bound = self.model_copy()
        plain = SelfConfig(rank=0, marks=False)
        config = LatentConfig(source=lm.name, encoder=plain, adapters={lm.name: NativeConfig()})
        bound._modules, bound._reader, bound._lm = LatentModules(config, {lm.name: lm}, lm).eval(), lm.name, lm
        return bound

    def latents(self, contexts: Sequence[str]) -> Latents:
        assert self._lm is not None, "bind the wire to its reader first"
        lm = self._lm
        prefix = Prefix.of_tokens([lm.format.before(context, lm) for context in contexts], device=lm.device)
        memory, scores = self.read(lm, prefix)
        self._read = None
        # Whatever else a method has read after the context is not part of it.
        columns = prefix.columns.width
        heads = [keys.shape[1] for keys in memory.keys]
        ranked = [
            score[..., :columns].expand(-1, count, -1).masked_fill(~prefix.columns.valid[:, None], -torch.inf)
            for score, count in zip(scores, heads, strict=True)
        ]
        places, valid = self.places(prefix)
        counts = [valid.sum(1)[:, None].expand(-1, count) for count in heads]
        kept: tuple[Tensor, ...] = ()
        if self.budget == "head":
            counts = [_shared(score, valid.sum(1)) for score in ranked]
            most = torch.stack([count.amax(1) for count in counts]).amax(0)
            places, valid = _spread(prefix.columns.valid.sum(1).tolist(), most.tolist(), lm.device)
            kept = tuple(torch.arange(valid.shape[1], device=lm.device) < count[..., None] for count in counts)
        keys, values = [], []
        for layer, (score, count) in enumerate(zip(ranked, counts, strict=True)):
            chosen = _top(score, count, valid.shape[1])
            keys.append(_turned(lm, layer, memory, chosen, places, count))
            values.append(_gather(memory.values[layer], chosen))
        return Latents(
            valid, places, prefix.columns.valid.sum(1), keys=tuple(keys), values=tuple(values), heads=kept
        )

    def places(self, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """Evenly spread columns `(B, M)` of a prefix, M the number kept, and which of them a row has."""
        rows = [_even(length, self.kept(length), self.ratio) for length in prefix.columns.valid.sum(1).tolist()]
        return _padded(rows, prefix.columns.valid.device)


def _shared(scores: Tensor, count: Tensor) -> Tensor:
    """`(B, H)`: how many columns each head keeps where the heads of a layer share `count` columns a head.

    Args:
        scores: `(B, H, P)`, padding at -inf. count: `(B,)`, columns a head under a uniform budget.
    """
    rows, heads, columns = scores.shape
    # Each head's own first fifth comes before all else.
    least = (count[:, None] + 4) // 5
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    first = torch.where(rank < least[..., None], torch.inf, scores)
    order = first.flatten(1).argsort(dim=-1, descending=True, stable=True).argsort(-1).view(rows, heads, columns)
    return ((order < (count * heads)[:, None, None]) & (scores > -torch.inf)).sum(-1)


def _turned(lm: LM, layer: int, memory: Memory, chosen: Tensor, places: Tensor, count: Tensor) -> Tensor:
    """Keys `(B, H, M, D)` of columns `(B, H, M)` that, once rotated to `places`, stand where they stood."""
    rows = _gather(memory.keys[layer], chosen)
    padding = torch.arange(chosen.shape[2], device=chosen.device) >= count[..., None]
    if bool(((chosen == places[:, None]) | padding).all()):
        return rows
    heads = chosen.shape[1]
    there = lm.rotary.rotate(layer, rows.flatten(0, 1)[:, None], chosen.flatten(0, 1))
    back = lm.rotary.rotate(layer, there, places.repeat_interleave(heads, 0), back=True)
    keys: Tensor = back[:, 0].unflatten(0, (-1, heads))  # type: ignore[no-untyped-call]
    return keys


def _top(scores: Tensor, count: Tensor, width: int) -> Tensor:
    """`(B, H, width)`: the `count` `(B, H)` columns of highest score of `(B, H, P)`, in their order.

    What is left of the width is the last column.
    """
    ranked = scores.sort(dim=-1, descending=True, stable=True).indices[..., :width]
    padding = torch.arange(width, device=scores.device) >= count[..., None]
    return ranked.masked_fill(padding, scores.shape[-1] - 1).sort(-1).values


def _even(length: int, kept: int, ratio: int | None) -> list[int]:
    """Columns as `Anchors` takes them under a ratio, else evenly from the first to the last."""
    if ratio is not None and ratio > 1:
        return [0, *(min(end, length - 1) for end in range(ratio, length - 1 + ratio, ratio))] if length else []
    return [round(n * (length - 1) / max(kept - 1, 1)) for n in range(kept)]


def _spread(lengths: list[int], counts: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """So many columns of each row, evenly from the first to the last, and which of them a row has."""
    return _padded([_even(length, count, None) for length, count in zip(lengths, counts, strict=True)], device)


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    valid = pad_rows([[1] * len(row) for row in rows], 0).bool().to(device)
    return pad_rows(rows, 0).to(device), valid


def _gather(columns: Tensor, chosen: Tensor) -> Tensor:
    return columns.gather(2, chosen[..., None].expand(-1, -1, -1, columns.shape[-1]))

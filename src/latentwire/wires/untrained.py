"""Latents without training: the reader's own keys and values of a context, some of them kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import PrivateAttr
from torch import Tensor

from latentwire.lm.masks.attended import attended
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


class _Kept(Sized, LatentWireBase):
    """What wires share that keep some columns of a context that was read causally."""

    _lm: LM | None = PrivateAttr(None)

    def bind(self, lm: LM) -> Self:
        """Make ready for a reader. Raises `UserError` if it rotates keys in a way not known here."""
        bound = self.model_copy()
        plain = SelfConfig(rank=0, marks=False)
        config = LatentConfig(source=lm.name, encoder=plain, adapters={lm.name: NativeConfig()})
        bound._modules, bound._reader, bound._lm = LatentModules(config, {lm.name: lm}, lm).eval(), lm.name, lm
        return bound

    def latents(self, contexts: Sequence[str]) -> Latents:
        assert self._lm is not None, "bind the wire to its reader first"
        rows = [self._lm.format.before(context, self._lm) for context in contexts]
        return self.keep(rows, self._lm)

    @abstractmethod
    def keep(self, rows: list[list[int]], lm: LM) -> Latents:
        """Latents of contexts given as token ids."""

    def places(self, rows: list[list[int]], lm: LM) -> tuple[Tensor, Tensor]:
        """Evenly spread columns `(B, M)`, as many as are kept, and whether they are there."""
        even = [_even(len(row), self.kept(len(row)), self.ratio) for row in rows]
        valid = pad_rows([[1] * len(each) for each in even], 0).bool().to(lm.device)
        return pad_rows(even, 0).to(lm.device), valid


class Nth(_Kept):
    """Every n-th key and value: what a trained wire with `Anchors` is before its first step."""

    kind: Literal["nth"] = "nth"

    def keep(self, rows: list[list[int]], lm: LM) -> Latents:
        _, memory = lm.memorize(Prefix.of_tokens(rows, device=lm.device))
        at, valid = self.places(rows, lm)
        every = [at[:, None].expand(-1, each.shape[1], -1) for each in memory.keys]
        keys = tuple(_gather(each, chosen) for each, chosen in zip(memory.keys, every, strict=True))
        values = tuple(_gather(each, chosen) for each, chosen in zip(memory.values, every, strict=True))
        return Latents(valid, at, _lengths(rows, lm), keys=keys, values=values)


class Evict(_Kept):
    """The keys and values that matter most when the context is told again, question unseen (KVzip, 2505.23416).

    The reader reads the context twice; what a column matters to a key head is the largest attention weight it
    receives from the second reading. As many columns are kept in every layer and head, each head's own. (KVzip
    also lets heads share a budget unevenly, which latents of one shape cannot.)

    Kept columns keep their positions: a head's keys are turned ahead by how far its columns stand from the evenly
    spread ones that the message tells of. A sliding window counts from those.
    """

    kind: Literal["evict"] = "evict"

    def keep(self, rows: list[list[int]], lm: LM) -> Latents:
        again = list(lm.tokenizer("\n", add_special_tokens=False)["input_ids"])
        # A text begins once: the second reading leaves BOS out.
        twice = [row + again + row[int(row[:1] == [lm.tokenizer.bos_token_id]) :] for row in rows]
        length = _lengths(rows, lm)
        prefix = Prefix.of_tokens(twice, device=lm.device)
        column = torch.arange(prefix.columns.width, device=lm.device)
        memory, received = attended(lm, prefix, prefix.columns.valid & (column >= length[:, None]))
        at, valid = self.places(rows, lm)
        keys, values = [], []
        for layer, weights in enumerate(received):
            behind = (column >= length[:, None])[:, None]
            chosen = _top(weights.masked_fill(behind, -1), valid)
            keys.append(_turned(lm, layer, memory, chosen, at))
            values.append(_gather(memory.values[layer], chosen))
        return Latents(valid, at, length, keys=tuple(keys), values=tuple(values))


def _turned(lm: LM, layer: int, memory: Memory, chosen: Tensor, at: Tensor) -> Tensor:
    """Keys `(B, H, M, D)` of columns `(B, H, M)`, such that rotated to `at` they stand where they stood."""
    heads = chosen.shape[1]
    rows = _gather(memory.keys[layer], chosen).flatten(0, 1)[:, None]
    there = lm.rotary.rotate(layer, rows, chosen.flatten(0, 1))
    back = lm.rotary.rotate(layer, there, at.repeat_interleave(heads, 0), back=True)
    keys: Tensor = back[:, 0].unflatten(0, (-1, heads))  # type: ignore[no-untyped-call]
    return keys


def _top(weights: Tensor, valid: Tensor) -> Tensor:
    """`(B, H, M)`: the columns of largest weight of `(B, H, P)`, in their order; M of each row are `valid`."""
    width = valid.shape[1]
    ranked = weights.sort(dim=-1, descending=True, stable=True).indices[..., :width]
    return ranked.masked_fill(~valid[:, None], weights.shape[-1] - 1).sort(-1).values


def _even(length: int, kept: int, ratio: int | None) -> list[int]:
    """Columns as `Anchors` takes them under a ratio, else evenly from the first to the last."""
    if ratio is not None and ratio > 1:
        return [0, *(min(end, length - 1) for end in range(ratio, length - 1 + ratio, ratio))] if length else []
    return [round(n * (length - 1) / max(kept - 1, 1)) for n in range(kept)]


def _gather(each: Tensor, chosen: Tensor) -> Tensor:
    return each.gather(2, chosen[..., None].expand(-1, -1, -1, each.shape[-1]))


def _lengths(rows: list[list[int]], lm: LM) -> Tensor:
    return torch.tensor([len(row) for row in rows], device=lm.device)

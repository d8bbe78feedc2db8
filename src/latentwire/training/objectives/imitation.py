"""An objective that follows another wire: a bridge learns to give what the reader's own encoder would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.masks.reading import Memory
from latentwire.training.objectives.term import Term
from latentwire.training.wire.teacher import TEXT, Teacher
from latentwire.wires.latent.reader_text import SAMPLE, OwnText

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.training.wire.evidence import Evidence
    from latentwire.wires.latent.modules import LatentModules

LONG = " ".join([SAMPLE] * 16)
"""Long enough that wires of different ratios give different numbers of latents."""
RIDGE = 0.05
"""Of a head's mean variance, added in every direction: below it there is little but noise."""

STAGE = "stage:"
"""Before the name of a study's stage that trains the wire."""
AT_ONCE = 2**28
"""Bytes in float32 of the keys or values that are compared at a time."""


class Imitate(Term):
    """Keys and values match those of a finished wire of the same reader, latent by latent.

    An answer says little about where a translator went wrong; here every number that it makes has a target.
    Distances are in units of the targets' own spread in each direction of a head (Mahalanobis, 1936): what tells
    two people apart is a small part of a key.

    Such a distance is a mean over all numbers, and its gradient at the message is some thirty times smaller than
    that of an answer's cross-entropy: beside one, a weight of 30 makes it count as much.

    Attributes:
        wire: The finished wire: `embedded:NAME`, a folder, or a run's; or `text`, the reader's own keys and values
            of the text, for a wire with one latent for each of its tokens.
        reader: The reader of both, where the wire has several.
    """

    needs_message: ClassVar[bool] = True

    kind: Literal["imitate"] = "imitate"
    wire: str
    reader: str | None = None

    @torch.no_grad()
    def check(self, modules: LatentModules, readers: Mapping[str, LM]) -> None:
        """Compare both wires on one text. A wire that a study's stage trains is compared when training begins."""
        if self.wire.startswith(STAGE):
            return
        if self.reader is not None and self.reader not in readers:
            known = ", ".join(readers)
            raise UserError(f"objectives: imitate found the reader {self.reader!r}, expected one of {known}.")
        for name, lm in readers.items():
            if self.reader not in (None, name):
                continue
            text = OwnText.of([lm.format.before(LONG, lm)], lm)
            made = modules.deliver(modules([LONG]), name, text).memory
            teaching = Teacher(lm, lambda told: None)
            if self.wire == TEXT:
                aims = teaching.memory(text.tokens)
            else:
                aims = teaching.delivered(self.wire, name, [LONG], modules.config.carry)
            assert aims is not None, "one sentence fits into memory"
            self._side_by_side(made, aims, name)

    @property
    def finished(self) -> str | None:
        """The finished wire to follow; None if that is the text, or if a study's stage trains it."""
        return None if self.wire == TEXT or self.wire.startswith(STAGE) else self.wire

    def loss(self, evidence: Evidence) -> Tensor | None:
        if self.reader not in (None, evidence.reader):
            return torch.zeros((), device=evidence.lm.device)
        aims = evidence.imitated(self.wire)
        if aims is None:
            return None
        made, thinned = evidence.delivered.memory, evidence.encoded.part.keep < 1
        return _apart(*self._side_by_side(made, aims, evidence.reader, thinned)) * evidence.labels

    def _side_by_side(
        self, made: Memory | None, aims: Memory, reader: str, thinned: bool = False
    ) -> tuple[Memory, Memory]:
        """Both memories with the same columns: padding that only one of them has is cut off.

        Args:
            thinned: Some latents are dropped before delivery; they keep their targets.
        """
        width = max(0 if made is None else made.columns.width, aims.columns.width)
        wanted = F.pad(aims.columns.valid, (0, width - aims.columns.width))
        real = wanted.new_zeros(wanted.shape) if made is None else made.columns.valid
        found = F.pad(real, (0, width - real.shape[1]))
        if made is None or not torch.equal(found, found & wanted if thinned else wanted):
            raise UserError(
                f"objectives: imitate found {int(real.sum())} latents of keys and values, expected the "
                f"{int(wanted.sum())} of {self.wire} (`align` the source to {reader} and take as many anchors)."
            )
        both = min(made.columns.width, aims.columns.width)
        return _first(made, both), _first(aims, both)


def _first(memory: Memory, width: int) -> Memory:
    keys, values = (tuple(part[:, :, :width] for part in each) for each in (memory.keys, memory.values))
    return Memory(keys, values, memory.columns.slice(0, width))


def _apart(made: Memory, aims: Memory) -> Tensor:
    at = aims.columns.valid.flatten().nonzero()[:, 0]
    pairs = list(zip((*made.keys, *made.values), (*aims.keys, *aims.values), strict=True))
    parts = []
    for alike in _alike(pairs):
        # (P * H, N, D) each, of P pairs
        own, aim = (
            torch.stack(each).transpose(2, 3).flatten(1, 2)[:, at].transpose(1, 2).flatten(0, 1).float()
            for each in zip(*alike, strict=True)
        )
        parts.append(_whitened(aim, own - aim).square().unflatten(0, (len(alike), -1)).mean((1, 2, 3)))
    return torch.cat(parts).mean()


def _alike(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Sequence[tuple[Tensor, Tensor]]]:
    """Neighbouring pairs of one shape, `AT_ONCE` bytes at a time: a launch costs as much for one as for many."""
    for _, group in groupby(pairs, key=lambda pair: [(each.shape, each.dtype) for each in pair]):
        some = list(group)
        size = max(1, AT_ONCE // (4 * some[0][1].numel()))
        yield from (some[start : start + size] for start in range(0, len(some), size))


def _whitened(aim: Tensor, apart: Tensor) -> Tensor:
    """Differences `(H, N, D)` in units of the targets' spread, which `RIDGE` bounds from below."""
    with torch.autocast(aim.device.type, enabled=False):
        centred = aim - aim.mean(1, keepdim=True)
        spread = centred.mT @ centred / aim.shape[1]
        size = spread.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
        one = torch.eye(aim.shape[-1], device=aim.device)
        # `cholesky` would wait for the device to check its result; with the ridge every pivot is positive.
        lower = torch.linalg.cholesky_ex(spread + RIDGE * size[:, None, None] * one)[0]
        # Small inverses and a product: solving for thousands of differences takes a GPU far longer.
        inverse = torch.linalg.solve_triangular(lower, one.expand_as(lower), upper=False)
        scaled: Tensor = apart @ inverse.mT
    return scaled

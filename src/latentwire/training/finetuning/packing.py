"""Documents packed into rows without padding between them; they cannot attend to each other."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from latentwire.lm.masks.reading import Columns, LayerRange
from latentwire.lm.prefix import pad_rows
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.scoring.questions import IGNORE
from latentwire.training.finetuning.documents import Document


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of packed rows.

    Attributes:
        ids: `(B, T)` token ids.
        labels: `(B, T)`, `IGNORE` where nothing is learned.
        columns: Documents are numbered within a row, and positions start anew in each.
        layers: The layers in which blocks count; None for all.
        names: The documents, for messages.
        answers: Tokens of every answer in the whole step, of which these rows may be a part; None takes their own.
    """

    ids: Tensor
    labels: Tensor
    columns: Columns
    layers: LayerRange | None = None
    answers: Sequence[int] | None = None
    names: Sequence[str] = ()

    def to(self, device: torch.device) -> Rows:
        columns = Columns(
            self.columns.valid.to(device),
            self.columns.positions.to(device),
            self.columns.blocks.to(device),
            self.columns.documents.to(device),
        )
        return replace(self, ids=self.ids.to(device), labels=self.labels.to(device), columns=columns)


def collate(
    rows: Sequence[Sequence[Document]], layers: LayerRange | None = None, shape: tuple[int, int] = (0, 0)
) -> Rows:
    """Rows of documents as one batch, padded on the right to the longest row.

    Args:
        shape: The least number of rows and columns, for kernels that are compiled for one shape.
    """
    rows = [*rows, *[[]] * (shape[0] - len(rows))]

    def pad(values: list[list[int]], fill: int) -> Tensor:
        made = pad_rows(values, fill)
        return torch.nn.functional.pad(made, (0, max(0, shape[1] - made.shape[1])), value=fill)

    blocks = pad([[b for d in row for b in d.blocks] for row in rows], CAUSAL)
    numbers = pad([[n for n, d in enumerate(row) for _ in d.ids] for row in rows], 0)
    positions = pad([[p for d in row for p in range(len(d.ids))] for row in rows], 0)
    valid = pad([[1 for d in row for _ in d.ids] for row in rows], 0).bool()
    return Rows(
        ids=pad([[t for d in row for t in d.ids] for row in rows], 0),
        labels=pad([[t for d in row for t in d.labels] for row in rows], IGNORE),
        columns=Columns(valid, positions, blocks, numbers),
        layers=layers,
        names=[document.name for row in rows for document in row],
    )


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Assign documents to rows: best fit, longest first; equal lengths keep their order.

    Args:
        lengths: Tokens of each document, none above `width`.
        width: Tokens of a row.

    Returns:
        For each row the indices of its documents.

    Example:
        >>> pack([3, 5, 2], 5)
        [[1], [0, 2]]
    """
    rows: list[list[int]] = []
    # (space left, row), sorted: the first entry with enough space is the tightest fit.
    space: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(space, (lengths[index], -1))
        if at == len(space):
            rows.append([])
            left, row = width, len(rows) - 1
        else:
            left, row = space.pop(at)
        rows[row].append(index)
        insort(space, (left - lengths[index], row))
    return rows


class Plan:
    """Which documents are in which row of which step: a function of lengths, seed and step alone.

    Every epoch shuffles the documents, packs them and shuffles the rows. Two masks get the same rows and labels in
    the same order, since tokens and lengths are the same.
    """

    def __init__(self, documents: Sequence[Document], width: int, rows_per_step: int, seed: int) -> None:
        self._documents, self._width = documents, width
        self._rows_per_step, self._seed = rows_per_step, seed

    def _epoch(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self._seed}/order/{epoch}")
        order = draw.sample(range(len(self._documents)), len(self._documents))
        packed = pack([len(self._documents[i].ids) for i in order], self._width)
        rows = [[order[i] for i in row] for row in packed]
        draw.shuffle(rows)
        return rows

    def steps(self, start: int, stop: int) -> Iterator[list[list[Document]]]:
        """The rows of steps `start` to `stop - 1`; a step may hold rows of two epochs."""
        wanted = start * self._rows_per_step
        epoch, rows = 0, self._epoch(0)
        while wanted >= len(rows):
            wanted -= len(rows)
            epoch, rows = epoch + 1, self._epoch(epoch + 1)
        for _ in range(start, stop):
            batch = []
            for _ in range(self._rows_per_step):
                if wanted == len(rows):
                    epoch, rows, wanted = epoch + 1, self._epoch(epoch + 1), 0
                batch.append([self._documents[i] for i in rows[wanted]])
                wanted += 1
            yield batch

    @cache  # noqa: B019 - one plan a finetuning, asked at every checkpoint
    def sha256(self) -> str:
        """Hash of every token and label, the sizes and the order of the first epoch; the mask is not in it."""
        digest = hashlib.sha256(repr((self._width, self._rows_per_step)).encode())
        for row in self._epoch(0):
            for index in row:
                document = self._documents[index]
                digest.update(repr((document.ids, document.labels)).encode())
            digest.update(b"row")
        return digest.hexdigest()

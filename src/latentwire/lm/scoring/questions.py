"""Packs several questions after one shared prefix; questions cannot attend to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from latentwire.lm.masks.reading import SHARED, Columns, Memory, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced, Prefix, pad_rows, rounded

IGNORE = -100
"""Label of a token that no loss is computed for."""


@dataclass(frozen=True, eq=False)
class Shared:
    """The prefix that all questions of a row share, for B rows.

    Attributes:
        end: `(B,)`, the position of the first token after it.
        memory: keys (not rotated) and values.
        content: token ids `(B, P)` or embeddings `(B, P, D)`.
        columns: of `content`; their document is `SHARED`, which every question sees.
    """

    end: Tensor
    memory: Memory | None = None
    content: Tensor | None = None
    columns: Columns | None = None

    @classmethod
    def of_tokens(cls, rows: Sequence[Sequence[int]], device: torch.device | str, multiple: int = 1) -> Shared:
        """Plain text, read causally. multiple: the number of columns is padded to a multiple of it."""
        ids = pad_rows(rows, 0, multiple).to(device)
        end = torch.tensor([len(row) for row in rows], device=device)
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        valid = positions < end[:, None]
        return cls(end, content=ids, columns=Columns.of(valid, positions, documents=torch.full_like(ids, SHARED)))

    def followed(self, text: Shared, lm: LM) -> Shared:
        """This prefix with plain text appended."""
        assert text.content is not None
        assert text.columns is not None
        moved = torch.where(text.columns.valid, text.columns.positions + self.end[:, None], 0)
        columns, content = replace(text.columns, positions=moved), text.content
        if self.content is not None and self.columns is not None:
            columns, content = self.columns.append(columns), torch.cat([self.content, self.like(content, lm)], 1)
        return Shared(self.end + text.end, self.memory, content, columns)

    def like(self, ids: Tensor, lm: LM) -> Tensor:
        """Token ids in the form of `content`: unchanged, or embedded."""
        assert self.content is not None
        return lm.embed(ids).to(self.content) if self.content.is_floating_point() else ids

    def select(self, rows: slice) -> Shared:
        """The shared prefixes of these rows."""
        at = torch.arange(len(self.end), device=self.end.device)[rows]
        return Shared(
            self.end[rows],
            None if self.memory is None else self.memory.select(at),
            None if self.content is None else self.content[rows],
            None if self.columns is None else self.columns.select(at),
        )

    def ask(self, questions: Sequence[Sequence[int]], lm: LM) -> Prefix:
        """This prefix followed by one question per row, given as token ids."""
        ids = pad_rows(questions, 0).to(self.end.device)
        steps = torch.arange(ids.shape[1], device=ids.device)
        valid = pad_rows([[1] * len(row) for row in questions], 0).bool().to(ids.device)
        own = Columns.of(valid, torch.where(valid, self.end[:, None] + steps, 0))
        if self.content is None or self.columns is None:
            return Prefix(ids=ids, columns=own, memory=self.memory)
        columns, content = self.columns.append(own), torch.cat([self.content, self.like(ids, lm)], 1)
        if content.is_floating_point():
            return Prefix(embeddings=content, columns=columns, memory=self.memory)
        return Prefix(ids=content, columns=columns, memory=self.memory)


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions with their answers as token columns `(B, T)`; each row holds the questions about one context.

    Attributes:
        ids, labels: labels are `IGNORE` except on answer tokens.
        numbers: which question of its row a column belongs to.
        steps: the column's index within question and answer.
        places: the column's index within its answer, -1 before the answer.
        valid: False on padding.
        learned: `(N,)`, flat indices (row * T + column) of the columns that predict an answer token.
        first: `(A,)`, indices into `learned` of the columns that predict an answer's first token.
    """

    ids: Tensor
    labels: Tensor
    numbers: Tensor
    steps: Tensor
    places: Tensor
    valid: Tensor
    learned: Tensor
    first: Tensor

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[tuple[list[int], list[int]]]],
        device: torch.device | str,
        multiple: int = 1,
    ) -> Questions:
        """From (question, answer) token ids, one list of pairs per context. multiple: columns are padded to it."""
        flat = [(n, q, a) for row in rows for n, (q, a) in enumerate(row)]
        asked = torch.tensor([len(q) for _, q, _ in flat])
        sizes = torch.tensor([len(q) + len(a) for _, q, a in flat])
        tokens = torch.tensor([token for _, q, a in flat for token in (*q, *a)])
        steps = torch.arange(len(tokens)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        places = (steps - asked.repeat_interleave(sizes)).clamp_min(-1)
        widths = torch.tensor([sum(len(q) + len(a) for q, a in row) for row in rows])
        valid = torch.arange(rounded(int(widths.max()), multiple)) < widths[:, None]

        def columns(values: Tensor, fill: int) -> Tensor:
            made = torch.full(valid.shape, fill)
            made[valid] = values
            return made

        made = cls._of(
            ids=columns(tokens, 0),
            labels=columns(torch.where(places >= 0, tokens, IGNORE), IGNORE),
            numbers=columns(torch.tensor([n for n, _, _ in flat]).repeat_interleave(sizes), 0),
            steps=columns(steps, 0),
            places=columns(places, -1),
            valid=valid,
        )
        return cls(*(getattr(made, each.name).to(device) for each in fields(cls)))

    @classmethod
    def _of(cls, **columns: Tensor) -> Questions:
        # Computed on the host, where batches are made: on a GPU, asking which columns those are would synchronize.
        labelled = columns["labels"] != IGNORE
        every = torch.cat([labelled[:, 1:], torch.zeros_like(labelled[:, :1])], 1)
        learned = every.flatten().nonzero()[:, 0]
        first = (columns["places"].flatten()[learned + 1] == 0).nonzero()[:, 0]
        return cls(**columns, learned=learned, first=first)

    def relabelled(self, ids: Tensor, labels: Tensor) -> Questions:
        """The same columns with other tokens and labels, `(B, T)` each."""
        return self._of(**{**self._columns, "ids": ids, "labels": labels})

    def select(self, rows: slice) -> Questions:
        """The questions of these rows."""
        if rows.indices(len(self.ids)) == (0, len(self.ids), 1):
            return self
        return self._of(**{name: columns[rows] for name, columns in self._columns.items()})

    @property
    def _columns(self) -> dict[str, Tensor]:
        derived = ("learned", "first")
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in derived}

    @cached_property
    def counts(self) -> Tensor:
        """`(B,)`: how many columns of each row predict answer tokens."""
        return (self.labels[:, 1:] != IGNORE).sum(1)

    def at(self, every: Tensor) -> Tensor:
        """`(N, ...)`: the values `(B, T, ...)` of all columns, at the learned ones."""
        return every.flatten(0, 1)[self.learned]

    @cached_property
    def aims(self) -> Tensor:
        """`(N,)`: the label of each learned column: the token that follows it."""
        return self.labels.flatten()[self.learned + 1]

    @cached_property
    def place(self) -> Tensor:
        """`(N,)`: the index in its answer of the token that each learned column predicts."""
        return self.places.flatten()[self.learned + 1]

    @cached_property
    def row(self) -> Tensor:
        """`(N,)`: the row of each learned column."""
        return self.learned // self.ids.shape[1]

    def forced(self, shared: Shared, lm: LM) -> Forced:
        """Teacher forcing after the shared prefix: hidden states `(N, D)` and labels `(N,)`; gradients flow."""
        start = shared.end[:, None]
        own = Columns.of(self.valid, torch.where(self.valid, start + self.steps, 0), documents=self.numbers)
        # A learned prefix takes the first positions, so the model rotates everything further.
        shift = 0 if lm.prefix_tuning is None else lm.prefix_tuning.tokens
        memory = None if shared.memory is None else lm.rotary.memory(shared.memory, shift)
        if shared.content is None or shared.columns is None:
            hidden = lm.run(self.ids, own, Reading(own, memory=memory))
        else:
            columns = shared.columns.append(own)
            content = torch.cat([shared.content, shared.like(self.ids, lm)], 1)
            hidden = lm.run(content, columns, Reading(columns, memory=memory))[:, shared.columns.width :]
        return Forced(self.at(hidden), self.aims)

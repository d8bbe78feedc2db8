"""Several questions about one context: what they share stands first, each is a document of its own behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced, Prefix, pad_rows
from latentwire.lm.reading import SHARED, Columns, Memory, Reading

IGNORE = -100
"""Label of a token that is not learned."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What stands before every question of B rows, in whatever form it was delivered.

    end: `(B,)`, the position behind it. memory: keys (not rotated) and values. content: token ids `(B, P)` or
    embeddings `(B, P, D)`, with their columns, all of them of the document `SHARED`.
    """

    end: Tensor
    memory: Memory | None = None
    content: Tensor | None = None
    columns: Columns | None = None

    @classmethod
    def of_tokens(cls, rows: Sequence[Sequence[int]], device: torch.device | str) -> Shared:
        """Plain text, read causally."""
        ids = pad_rows(rows, 0).to(device)
        end = torch.tensor([len(row) for row in rows], device=device)
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        valid = positions < end[:, None]
        return cls(end, content=ids, columns=Columns.of(valid, positions, documents=torch.full_like(ids, SHARED)))

    def ask(self, questions: Sequence[Sequence[int]], lm: LM) -> Prefix:
        """The prefix of one question a row, from its token ids."""
        ids = pad_rows(questions, 0).to(self.end.device)
        steps = torch.arange(ids.shape[1], device=ids.device)
        valid = pad_rows([[1] * len(row) for row in questions], 0).bool().to(ids.device)
        own = Columns.of(valid, torch.where(valid, self.end[:, None] + steps, 0))
        if self.content is None or self.columns is None:
            return Prefix(ids=ids, columns=own, memory=self.memory)
        columns = self.columns.append(own)
        if not self.content.is_floating_point():
            return Prefix(ids=torch.cat([self.content, ids], 1), columns=columns, memory=self.memory)
        asked = lm.embed(ids).to(self.content)
        return Prefix(embeddings=torch.cat([self.content, asked], 1), columns=columns, memory=self.memory)


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions with their answers, as token columns `(B, T)`, row by row those about one context.

    ids, labels: labels are `IGNORE` but on answers. numbers: which question of its row a column belongs to.
    steps: a column's place in its question. places: in its answer, -1 before it. valid: no padding.
    """

    ids: Tensor
    labels: Tensor
    numbers: Tensor
    steps: Tensor
    places: Tensor
    valid: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[tuple[list[int], list[int]]]], device: torch.device | str) -> Questions:
        """From token ids of question and answer, a list of pairs a context."""

        def columns(of: Callable[[int, list[int], list[int]], list[int]], fill: int) -> Tensor:
            return pad_rows([[t for n, (q, a) in enumerate(row) for t in of(n, q, a)] for row in rows], fill).to(
                device
            )

        return cls(
            ids=columns(lambda n, q, a: q + a, 0),
            labels=columns(lambda n, q, a: [IGNORE] * len(q) + a, IGNORE),
            numbers=columns(lambda n, q, a: [n] * len(q + a), 0),
            steps=columns(lambda n, q, a: list(range(len(q + a))), 0),
            places=columns(lambda n, q, a: [-1] * len(q) + list(range(len(a))), -1),
            valid=columns(lambda n, q, a: [1] * len(q + a), 0).bool(),
        )

    @property
    def learned(self) -> Tensor:
        """`(B, T)`: the columns whose next token is an answer's. N of them are true."""
        labelled = self.labels != IGNORE
        return torch.cat([labelled[:, 1:], torch.zeros_like(labelled[:, :1])], 1)

    @property
    def place(self) -> Tensor:
        """`(N,)`: which token of its answer each learned column predicts, from 0."""
        return torch.roll(self.places, -1, 1)[self.learned]

    @property
    def first(self) -> Tensor:
        """`(N,)`: of the N learned columns, those that predict an answer's first token."""
        return self.place == 0

    @property
    def row(self) -> Tensor:
        """`(N,)`: the row of each learned column."""
        return self.learned.nonzero()[:, 0]

    def forced(self, shared: Shared, lm: LM) -> Forced:
        """Teacher forcing behind what is shared: hidden `(N, D)` and labels `(N,)`; gradients flow."""
        start = shared.end[:, None]
        own = Columns.of(self.valid, torch.where(self.valid, start + self.steps, 0), documents=self.numbers)
        memory = None if shared.memory is None else lm.rotary.memory(shared.memory)
        if shared.content is None or shared.columns is None:
            hidden = lm.run(self.ids, own, Reading(own, memory=memory))
        else:
            columns = shared.columns.append(own)
            soft = shared.content.is_floating_point()
            asked = lm.embed(self.ids).to(shared.content) if soft else self.ids
            content = torch.cat([shared.content, asked], 1)
            hidden = lm.run(content, columns, Reading(columns, memory=memory))[:, shared.columns.width :]
        learned = self.learned
        return Forced(hidden[learned], torch.roll(self.labels, -1, 1)[learned])

"""Rows that hold branches of a prefix tree, and the mask under which they are read.

Parents come before children, and every token keeps its own position. A token sees its ancestors (packed tree
attention, as SpecInfer, 2305.09781, verifies its token trees) and its own block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.lm.masks.reading import Columns, Reading
from latentwire.lm.prefix import pad_rows
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.scoring.prefix_tree import Node, Scored
from latentwire.lm.scoring.row_plan import Branch

PADDED = 1.02
"""Maximum columns of a batch per token in it: at most 2 % of padding."""


@dataclass(frozen=True, eq=False)
class TreeReading(Reading):
    """A `Reading` of rows whose columns form trees.

    Documents and positions hide nothing here: a column sees the earlier columns whose branches it is in.

    Attributes:
        ends: `(B, T)`, for each column the first column after its branch.
    """

    ends: Tensor | None = None

    def whole(self, queries: int, keys: int) -> bool:
        """Always False: columns alone do not say who sees whom."""
        return False

    def _build(self, queries: int, keys: int, both_ways: bool, offset: int, window: int | None) -> Tensor:
        columns, ends = self.columns, self.ends
        if ends is None or offset or not queries == keys == columns.width:
            raise ValueError("a tree is read in one pass without a cache")
        column = torch.arange(queries, device=ends.device)
        query, key = column[:, None], column[None, :]
        see = (key <= query) & (query < ends[:, None, :])
        if both_ways:
            block = columns.blocks[:, :, None]
            see = see | ((block == columns.blocks[:, None, :]) & (block != CAUSAL))
        see = see & columns.valid[:, None, :]
        at, of = columns.positions[:, :, None], columns.positions[:, None, :]
        if self.memory is not None:
            before = self.memory.columns
            see = torch.cat([before.valid[:, None, :].expand(-1, queries, -1), see], 2)
            of = torch.cat([before.positions[:, None, :], of], 2)
        if window is not None:
            see = see & ((at - of).abs() < window)
        # Padding sees itself, since a softmax over nothing is NaN.
        itself = torch.arange(see.shape[2], device=see.device) - (see.shape[2] - queries) == query
        return (see | itself)[:, None]


class TreeRow:
    """The columns of one row.

    Attributes:
        start: tokens of the trunk before the row.
        at: for each sequence that ends in the row, the column that predicts each token of its continuation; a
            column of the trunk is counted back from its end, so it is negative.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.blocks: list[int] = []
        self.ends: list[int] = []
        self.at: list[tuple[Scored, list[int]]] = []
        self._columns: list[int] = []  # of the tokens on the way to the node that was placed last
        self._names: dict[tuple[int, int], int] = {}

    @classmethod
    def of_branches(cls, branches: Sequence[Branch], start: int) -> TreeRow:
        """A row of branches that continue a trunk of `start` tokens; a path that several share is placed once."""
        row, opened = cls(start), list[tuple[Node, int]]()
        for branch in branches:
            while [node for node, _ in opened] != list(branch.path[: len(opened)]):
                row._close(*opened.pop())
            for node in branch.path[len(opened) :]:
                opened.append((node, row.width))
                row._place(node, node.width)
            for node in branch.node.preorder():
                row._place(node, node.size)
        for node, column in opened:
            row._close(node, column)
        return row

    @classmethod
    def of_path(cls, nodes: Sequence[Node]) -> TreeRow:
        """A row of nodes in sequence, without the rest of their subtrees."""
        row = cls(nodes[0].start)
        for node in nodes:
            row._place(node, node.width)
        row.ends = [row.width] * row.width
        return row

    @property
    def width(self) -> int:
        return len(self.ids)

    def _close(self, node: Node, column: int) -> None:
        """Mark the row's current end as the end of this node's branch."""
        self.ends[column : column + node.width] = [self.width] * node.width

    def _place(self, node: Node, size: int) -> None:
        column, line = self.width, node.of
        del self._columns[node.start - self.start :]
        self._columns += range(column, column + node.width)
        self.ids += [line.token(at) for at in range(node.start, node.stop)]
        self.positions += range(node.start, node.stop)
        self.blocks += [self._name(line.block(at), column) for at in range(node.start, node.stop)]
        self.ends += [column + size] * node.width
        for line in node.ends:
            first = len(line.prompt.ids) - 1 - self.start
            steps = range(first, first + len(line.answer))
            self.at.append((line, [self._columns[step] if step >= 0 else step for step in steps]))

    def _name(self, block: int, column: int) -> int:
        """A block id that is unique in the row: no cut goes through a block, so a block belongs to one node."""
        return block if block == CAUSAL else self._names.setdefault((column, block), len(self._names))


def stacked(layouts: Sequence[TreeRow], device: torch.device) -> tuple[Tensor, Columns, Tensor]:
    """Token ids, columns and `ends` of rows, `(B, T)` each, padded on the right."""
    valid = pad_rows([[1] * row.width for row in layouts], 0).bool()
    columns = Columns.of(
        valid=valid.to(device),
        positions=pad_rows([row.positions for row in layouts], 0).to(device),
        blocks=pad_rows([row.blocks for row in layouts], CAUSAL).to(device),
        # Code that looks at documents alone must not take a tree for plain causal text.
        documents=pad_rows([row.ends for row in layouts], 0).to(device),
    )
    ids = pad_rows([row.ids for row in layouts], 0).to(device)
    return ids, columns, columns.documents


def in_batches(layouts: Sequence[TreeRow], batch_tokens: int) -> Iterator[list[TreeRow]]:
    """Batches of rows (given longest first) with at most `batch_tokens` columns and little padding."""
    batch: list[TreeRow] = []
    tokens = 0
    for row in layouts:
        columns = batch[0].width * (len(batch) + 1) if batch else 0
        if columns > batch_tokens or columns > PADDED * (tokens + row.width):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += row.width
    if batch:
        yield batch

"""What to read of a tree of shared tokens in which row.

A row holds several branches of a tree side by side (`tree_rows` lays it out). What many rows begin with is a
trunk: it is read once, and its keys and values stand before them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from latentwire.lm.scoring.prefix_tree import Node

ROW = 512
"""Tokens to which short branches are packed into one row; the mask of a row grows with their square."""
OPEN = 8
"""Rows among which a branch has its choice."""
TRUNK = 16
"""From so many tokens on, what several rows begin with is read apart; a shorter beginning is repeated in each."""


@dataclass(eq=False)
class Branch:
    """A node with all below it, behind the nodes that lead to it from the trunk."""

    path: tuple[Node, ...]
    node: Node


@dataclass(eq=False)
class Trunk:
    """Nodes that are read once for all rows behind them; none at the root.

    rows: the branches of each row. trunks: longer trunks that begin with this one.
    """

    nodes: tuple[Node, ...] = ()
    rows: list[list[Branch]] = field(default_factory=list)
    trunks: list[Trunk] = field(default_factory=list)


def plan(root: Node) -> Trunk:
    """Which trunks to read, and which rows behind each."""
    whole = Trunk()
    branches: dict[Trunk, list[Branch]] = {whole: []}
    stack: list[tuple[Node, Trunk, tuple[Node, ...]]] = [(node, whole, ()) for node in reversed(root.children)]
    while stack:
        node, trunk, path = stack.pop()
        if node.size - node.width <= ROW:
            branches[trunk].append(Branch(path, node))
            continue
        path = (*path, node)
        if sum(each.width for each in path) >= TRUNK or node.ends:
            longer = Trunk(path)
            trunk.trunks.append(longer)
            branches[longer] = []
            trunk, path = longer, ()
        stack += [(child, trunk, path) for child in reversed(node.children)]
    for trunk, found in branches.items():
        trunk.rows = _packed(found)
    return whole


def _packed(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Branches in rows of at most `ROW` tokens, a longer branch in one of its own; longest row first.

    A branch goes to one of the last few rows: where least of what leads to it is missing, and then where least
    room is left.
    """
    full: list[_Row] = []
    rows: list[_Row] = []
    for branch in branches:
        fitting = [row for row in rows if row.width + row.added(branch) <= ROW]
        if fitting:
            best = min(fitting, key=lambda row: (row.added(branch), -row.width))
        else:
            best = _Row()
            rows.append(best)
        best.width += best.added(branch)
        best.branches.append(branch)
        if len(rows) > OPEN:
            full.append(max(rows, key=lambda row: row.width))
            rows.remove(full[-1])
    return [row.branches for row in sorted([*full, *rows], key=lambda row: -row.width)]


@dataclass(eq=False)
class _Row:
    width: int = 0
    branches: list[Branch] = field(default_factory=list)

    def added(self, branch: Branch) -> int:
        """Tokens that a branch adds; what leads to it stands here already where the last one has the same path."""
        known = self.branches[-1].path if self.branches else ()
        same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(known, branch.path, strict=False)))
        return branch.node.size + sum(node.width for node in branch.path[same:])

"""Plans which rows a model reads to cover a prefix tree: packs small branches together, reads long prefixes once.

A row holds several branches of the tree side by side (`tree_rows` lays it out). A prefix that many rows begin with
is a trunk: it is read once, and its keys and values are put before all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from latentwire.lm.scoring.prefix_tree import Node

ROW = 512
"""Maximum tokens in a row of packed branches; the mask of a row grows with their square."""
OPEN_ROWS = 8
"""How many unfinished rows a branch can be packed into."""
MIN_TRUNK = 16
"""A shared prefix of at least this many tokens is read once as a trunk; a shorter one is repeated in each row."""


@dataclass(eq=False)
class Branch:
    """A node with its whole subtree, and the path of nodes that leads to it from the trunk."""

    path: tuple[Node, ...]
    node: Node


@dataclass(eq=False)
class Trunk:
    """A path of nodes that is read once, before all rows that continue it; empty at the root.

    Attributes:
        nodes: the path, from the root.
        rows: the branches packed into each row that continues this trunk.
        trunks: longer trunks that continue this one.
    """

    nodes: tuple[Node, ...] = ()
    rows: list[list[Branch]] = field(default_factory=list)
    trunks: list[Trunk] = field(default_factory=list)


def plan(root: Node) -> Trunk:
    """The trunks to read for a tree, and the rows that continue each of them."""
    empty = Trunk()
    branches: dict[Trunk, list[Branch]] = {empty: []}
    stack: list[tuple[Node, Trunk, tuple[Node, ...]]] = [(node, empty, ()) for node in reversed(root.children)]
    while stack:
        node, trunk, path = stack.pop()
        if node.size - node.width <= ROW:
            branches[trunk].append(Branch(path, node))
            continue
        path = (*path, node)
        if sum(part.width for part in path) >= MIN_TRUNK or node.ends:
            longer = Trunk(path)
            trunk.trunks.append(longer)
            branches[longer] = []
            trunk, path = longer, ()
        stack += [(child, trunk, path) for child in reversed(node.children)]
    for trunk, continuing in branches.items():
        trunk.rows = _packed(continuing)
    return empty


def _packed(branches: Sequence[Branch]) -> list[list[Branch]]:
    """Branches packed into rows of at most `ROW` tokens (a longer branch gets its own row), longest row first.

    Greedy best fit over the open rows: fewest path tokens to add, then the fullest row.
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
        if len(rows) > OPEN_ROWS:
            full.append(max(rows, key=lambda row: row.width))
            rows.remove(full[-1])
    return [row.branches for row in sorted([*full, *rows], key=lambda row: -row.width)]


@dataclass(eq=False)
class _Row:
    width: int = 0
    branches: list[Branch] = field(default_factory=list)

    def added(self, branch: Branch) -> int:
        """Tokens that a branch adds: its own, and those of its path that the last branch does not share."""
        last = self.branches[-1].path if self.branches else ()
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(last, branch.path, strict=False)))
        return branch.node.size + sum(node.width for node in branch.path[shared:])

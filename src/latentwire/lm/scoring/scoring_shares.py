"""What a scorer reads, batch by batch, and which process reads what; the batches are those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from latentwire.lm.scoring.row_plan import Trunk
from latentwire.lm.scoring.tree_rows import TreeRow, in_batches


@dataclass(frozen=True, eq=False)
class Reads:
    """A trunk and what is read after it.

    Attributes:
        trunk: Read once, before all that follows.
        batches: Rows that continue it, as they are read together.
        longer: Longer trunks that continue it.
        scores: Whether sequences that end in the trunk itself are scored here.
    """

    trunk: Trunk
    batches: list[list[TreeRow]]
    longer: list[Reads]
    scores: bool = True

    @classmethod
    def of(cls, trunk: Trunk, most: int, before: int = 0) -> Reads:
        """All of a trunk. most: columns of a batch. before: tokens of the trunks that it continues."""
        start = before + sum(node.width for node in trunk.nodes)
        rows = sorted((TreeRow.of_branches(row, start) for row in trunk.rows), key=lambda row: -row.width)
        longer = [cls.of(longer, most, start) for longer in trunk.trunks]
        return cls(trunk, list(in_batches(rows, most)), longer)

    def walk(self) -> Iterator[list[TreeRow]]:
        """All batches, in the order in which they are read."""
        yield from self.batches
        for longer in self.longer:
            yield from longer.walk()


def share(whole: Reads, index: int, size: int) -> Reads | None:
    """The consecutive batches that process `index` of `size` reads, with the trunks before them; None for none."""
    if size == 1:
        return whole
    costs = [batch[0].width * len(batch) for batch in whole.walk()]
    owners: list[int] = []
    done = 0
    for cost in costs:  # who reads a batch is decided by its middle
        owners.append(min(size - 1, int((done + cost / 2) * size / sum(costs))))
        done += cost
    return _owned(whole, iter(owners), index)


def _owned(reads: Reads, owners: Iterator[int], index: int) -> Reads | None:
    """The part of it whose batches have this owner; takes the owners of all its batches."""
    of_batches = [next(owners) for _ in reads.batches]
    mine = [batch for batch, owner in zip(reads.batches, of_batches, strict=True) if owner == index]
    firsts: list[int] = of_batches[:1]
    longer = []
    for each in reads.longer:
        own = [next(owners) for _ in each.walk()]
        firsts += own[:1]
        if (part := _owned(each, iter(own), index)) is not None:
            longer.append(part)
    if not mine and not longer:
        return None
    return replace(reads, batches=mine, longer=longer, scores=firsts[:1] == [index])

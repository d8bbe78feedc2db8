"""Tables and consoles in the one style of this package. Imports Rich, so import it where something is printed."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Literal

from rich.console import Console, RenderableType
from rich.table import Table

WIDTH = 160
"""Characters of a line where the output is no terminal: a piped table must not be cut to 80."""


def plain_table(
    *left: str,
    right: tuple[str, ...] = (),
    title: str | None = None,
    overflow: Literal["fold", "ellipsis"] = "ellipsis",
) -> Table:
    """A table without lines.

    Args:
        left: names of the first columns, aligned to the left.
        right: names of the columns after them, aligned to the right.
        title: a line above the table.
        overflow: what happens to a cell that is wider than its column.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow=overflow)
    for name in right:
        table.add_column(name, justify="right", overflow=overflow)
    return table


def console(width: int = WIDTH) -> Console:
    """Standard output, as wide as the terminal, or `width` characters where it is none."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def text_of(*parts: RenderableType, width: int = WIDTH) -> str:
    """Tables and sentences as plain text, with at most `width` characters in a line."""
    file = StringIO()
    written = Console(file=file, width=width, highlight=False)
    for part in parts:
        written.print(part, markup=False)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())

"""Comparisons between runs as a table for the screen, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from latentwire.files import write_atomically
from latentwire.printing import plain_table
from latentwire.runs.run_comparison import RunComparison


def compared(comparisons: Sequence[RunComparison]) -> Iterator[Table | str]:
    """A table of comparisons, and the sentences that belong below it."""
    table = plain_table("a", "b", "task", "a - b [95 %]", "p", "", right=("resolves from", "n", "groups", "seeds"))
    for one in comparisons:
        result = one.result
        p = result.p if result.p_holm is None else result.p_holm
        seeds = f"{result.seeds_a}" if result.paired_seeds else f"{result.seeds_a}, {result.seeds_b}"
        table.add_row(
            one.a,
            one.b,
            f"{one.task} {one.metric}",
            f"{result.difference:+.3f} [{result.low:+.3f}, {result.high:+.3f}]",
            "<1e-4" if p < 1e-4 else f"{p:.2g}",
            "resolved" if result.resolved else "equal within 0.05" if result.equal else "not resolved",
            f"{result.resolvable:.3f}",
            f"{result.n:,}",
            f"{result.groups:,}",
            "" if result.seeds_a == result.seeds_b == 1 else seeds,
        )
    yield table
    if len(comparisons) > 1:
        yield f"p-values are Holm-corrected over the {len(comparisons)} comparisons of this table."
    yield "resolves from: the smallest true difference that such a sample resolves with 80 % probability."
    if any(one.result.seeds_a > 1 or one.result.seeds_b > 1 for one in comparisons):
        yield "Intervals of several seeds are of a hierarchical bootstrap over seeds and groups."
    if any(one.single_seed for one in comparisons):
        yield "SINGLE SEED: a trained arm has one seed; the difference may be that of a seed."


def write_json(comparisons: Sequence[RunComparison], path: Path) -> None:
    """Write comparisons as a list of objects, unrounded."""
    write_atomically(path, json.dumps([one.numbers() for one in comparisons], indent=1) + "\n")

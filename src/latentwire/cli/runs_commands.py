"""`latentwire runs`: what finished runs are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import runs_app
from latentwire.cli.options import Runs


@runs_app.command("list")
def list_(runs: Runs = Path("runs")) -> None:
    """List all runs, oldest first."""
    from latentwire.runs import run_tables, store

    readable, unreadable = store.scan(runs)
    if readable or unreadable:
        print(*run_tables.listed(readable, unreadable), sep="\n")
    else:
        print(f"no runs in {runs}")


@runs_app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's folder, or STUDY/STAGE for its newest run.")],
    runs: Runs = Path("runs"),
) -> None:
    """Show one run: its origin and its results."""
    from latentwire.printing import console
    from latentwire.runs import run_tables, store

    screen = console()
    for part in run_tables.shown(store.find(runs, run)):
        screen.print(part, soft_wrap=isinstance(part, str), markup=False)

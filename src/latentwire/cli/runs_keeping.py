"""`latentwire runs verify`: whether runs are still what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import runs_app
from latentwire.cli.options import Runs


@runs_app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs, or STUDY/STAGE. [default: all]")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Check hashes and completeness of runs; exit status 1 if something is wrong."""
    from latentwire.runs import store, verification
    from latentwire.runs.log import counted

    found, unreadable = ([store.find(runs, name) for name in names], []) if names else store.scan(runs)
    with counted("verify", "runs", len(found)) as add:
        findings = list(verification.verify_all(found, unreadable, runs, add))
    for finding in findings:
        print(f"{'FAIL' if finding.fails else 'note'}  {finding}")
    failed = {finding.run for finding in findings if finding.fails}
    print(f"{len(found) + len(unreadable)} runs checked, {len(failed)} with something wrong")
    if failed:
        raise typer.Exit(1)

"""`latentwire init`, `run` and `report`: a study from its template to its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import app
from latentwire.cli.options import Runs
from latentwire.studies import templates


@app.command()
def init(
    template: Annotated[str, typer.Argument(help=f"{', '.join(templates())}.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path("study.yaml"),
) -> None:
    """Write a study template to a file, to be changed."""
    from latentwire.studies import commands

    commands.init(template, out)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A template's name or a YAML file.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage and the stages it needs; may be repeated.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, such as stages.ft.steps=100; may be repeated."),
    ] = None,
    runs: Runs = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is done already.")] = False,
    preset: Annotated[
        str | None, typer.Option(help="The size of every wire stage: smoke or hero. --set takes precedence.")
    ] = None,
) -> None:
    """Run a study: finished stages are not run again, interrupted ones resume."""
    from transformers.utils import logging

    from latentwire.studies import commands

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if status := commands.run(study, stage or (), set_ or (), runs, fresh=fresh, preset=preset):
        raise typer.Exit(status)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="A study's folder, where its summary.json is.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help=".svg or .png [default: in the folder]")] = None,
) -> None:
    """Draw the scores of latent arms against bytes and against facts per latent, and the loss of trainings."""
    from latentwire.studies import figures

    for path in figures.draw(study, out or study / "curves.svg"):
        print(path)

"""`latentwire init`, `run` and `report`: a study from its template to its figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import app
from latentwire.cli.options import Runs
from latentwire.errors import UserError
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
    track: Annotated[
        list[str] | None,
        typer.Option(help="Also tell tensorboard, wandb or trackio what is written; may be repeated."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Share the work among so many GPUs of this machine, a process for each.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Instead, share it among so many processes on the CPU.")
    ] = None,
) -> None:
    """Run a study: finished stages are not run again, interrupted ones resume.

    Under torchrun (torchrun ... -m latentwire.cli run STUDY) its processes share the work, on several machines
    too.
    """
    from latentwire import process_group, process_launch

    if count := process_launch.asked(gpus, processes):
        raise typer.Exit(process_launch.launch(sys.argv[1:], count, cpu=gpus is None))
    with process_group.joined() as group:
        from latentwire.heap import keep_freed_memory

        keep_freed_memory()
        from transformers.utils import logging

        from latentwire.studies import commands

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        status = commands.run(
            study,
            stage or (),
            set_ or (),
            runs,
            fresh=fresh,
            preset=preset,
            then=_write_report,
            track=track or (),
            group=group,
        )
        if status:
            raise typer.Exit(status)


def _write_report(folder: Path) -> None:
    from latentwire.report import page

    try:
        print(f"report, to be opened in a browser: {page.write([folder])}")
    except UserError as error:  # the study is done, and its tables are written
        print(f"latentwire: the report is not written: {error}", file=sys.stderr)


@app.command()
def report(
    studies: Annotated[
        list[Path], typer.Argument(help="Folders of studies, where their summary.json is; several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A page (.html), or curves of one study (.svg, .png). [default: report.html in it]"
        ),
    ] = None,
) -> None:
    """Write a page with everything a study found, its samples and what they show; it opens from disk."""
    if out is not None and out.suffix in (".svg", ".png"):
        from latentwire.studies import figures

        if len(studies) > 1:
            raise UserError(
                f"studies: found {len(studies)} for {out.name}, expected one; a page (.html) takes several."
            )
        written = figures.draw(studies[0], out)
    else:
        from latentwire.report import page

        written = [page.write(studies, out)]
    for path in written:
        print(path)

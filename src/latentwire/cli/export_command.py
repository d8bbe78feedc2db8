"""`latentwire export`: wires and models in the forms that others serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import app
from latentwire.cli.options import Dtype, Runs


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(help="A run, STUDY/STAGE, or a trained wire: a folder, embedded:NAME or a hub id.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    contexts: Annotated[
        Path | None,
        typer.Option(help="For a wire: JSON lines of context and question, or one context a line."),
    ] = None,
    reader: Annotated[str | None, typer.Option(help="For a wire with several readers, which one.")] = None,
    checkpoint: Annotated[str, typer.Option(help="best or final.")] = "best",
    dtype: Dtype = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write a finetuned model for Transformers, or a wire's messages for vLLM and Transformers."""
    from transformers.utils import logging

    from latentwire.exports.exporting import export as write

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    told = write(run, out, runs=runs, checkpoint=checkpoint, contexts=contexts, reader=reader, dtype=dtype)
    print(
        f"{out}: {told['kind']}" + (f" for {told['reader']}" if "reader" in told else f", reads {told['reads']}")
    )
    for remark in told["remarks"]:
        print(f"- {remark}")

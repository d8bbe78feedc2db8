"""`latentwire bench`, `doctor` and `grow`: this machine, and the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import app
from latentwire.errors import UserError


@app.command()
def grow(
    name: Annotated[str, typer.Argument(help="heron or wren.")],
    seed: Annotated[
        list[int] | None,
        typer.Option(help="The first seed is the model's; others are grown for its card only. [default: 0]"),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write. [default: ./NAME]")] = None,
) -> None:
    """Train an embedded model again from random weights, and measure it."""
    from latentwire.training.growing.regrow import regrow

    folder = out or Path(name)
    regrow(name, seed or [0], folder, _report_growth, print)
    print(f"what it can do: {folder / 'card.md'}")


def _report_growth(found: dict[str, float]) -> None:
    print(" ".join(f"{name} {value:.3f}".removesuffix(".000") for name, value in found.items()), flush=True)


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="train, weights, loss, decode, prefill, score, wire, scaling or load; or plot with FILES."
        ),
    ],
    files: Annotated[list[Path] | None, typer.Argument(help="For plot: files that --json wrote.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="tiny, 1b, 3b, 8b or 14b, with random weights. [default: 3b on an accelerator, else tiny]"
        ),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also other lengths, batches and shapes.")] = False,
    only: Annotated[
        str, typer.Option(help="Only one part, such as long of train; sweep for the sweep only.")
    ] = "",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16. [default: float32 on a CPU]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    out: Annotated[Path, typer.Option(help="For plot: the folder for the pictures.")] = Path("plots"),
) -> None:
    """Measure this engine beside what you would otherwise run, and beside the machine's limit."""
    from latentwire.bench import measuring

    if name == "plot":
        measuring.plot(files or (), out)
    elif files:
        raise UserError(f"bench: found the file {files[0]} after {name}, expected files after plot only.")
    else:
        measuring.run(name, shape=shape, sweep=sweep, only=only, dtype=dtype, json_file=json_file)


@app.command()
def doctor() -> None:
    """Show what this machine has, how fast it computes bfloat16, and whether the embedded models are intact."""
    from latentwire.doctor import examine

    healthy = True
    for finding in examine():
        print(f"{'ok  ' if finding.healthy else 'BAD '} {finding.subject:24} {finding.detail}")
        healthy &= finding.healthy
    if not healthy:
        raise typer.Exit(1)

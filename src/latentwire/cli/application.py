"""The command line as a whole: its groups, its help, and what a command prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from latentwire.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

    from latentwire.lm.loading.load_settings import Loading
    from latentwire.lm.model import LM
    from latentwire.lm.prompt_settings import PromptSettings

app = typer.Typer(
    name="latentwire",
    help="How a decoder language model reads its context, and what happens when we change that.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit status: 0 done, 1 the run failed or a check did not hold, 2 bad input.",
)

runs_app = typer.Typer(help="Find, compare, check and keep the runs of studies.", rich_markup_mode=None)
app.add_typer(runs_app, name="runs")


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    if version:
        print(f"latentwire {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@runs_app.callback(invoke_without_command=True)
def _runs(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


class WithWires(TyperCommand):
    """A command whose help ends with every kind of wire, as the wires describe themselves."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        # What `wires.described()` returns, kept in a file so that help does not wait for PyTorch.
        described = (Path(__file__).parent.parent / "wires" / "kinds.txt").read_text(encoding="utf-8")
        formatter.write("\nWires:\n" + indent(described, "  "))
        super().format_epilog(ctx, formatter)


def load(model: str, adapter: Path | None, loading: Loading, prompts: PromptSettings | None) -> LM:
    """A model as a command names it, loaded without Transformers' own progress bars."""
    from latentwire.heap import keep_freed_memory

    keep_freed_memory()
    from transformers.utils import logging

    from latentwire.lm.model import LM

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return LM.load(model, loading, adapter=adapter, prompts=prompts)


def print_parts(parts: Iterable[Table | str]) -> None:
    """Print tables in the terminal's width, and lines as they are."""
    from latentwire.printing import console

    screen = console()
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            screen.print(part)

"""`latentwire publish`: a run on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import app
from latentwire.cli.options import Runs
from latentwire.errors import UserError


@app.command()
def publish(
    run: Annotated[str, typer.Argument(help="A run's folder, or STUDY/STAGE for its newest run.")],
    repo: Annotated[str, typer.Option(help="OWNER/NAME; the repository is made if there is none.")],
    runs: Runs = Path("runs"),
    checkpoint: Annotated[str, typer.Option(help="best or final.")] = "best",
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read a new repository. [default: private]")
    ] = False,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Although it does not verify, leaks or was rejected; the card says so."),
    ] = False,
    call: Annotated[
        list[str] | None,
        typer.Option(help="LOCAL=OWNER/NAME: the hub id of a local model that a wire names; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files, and send nothing.")
    ] = False,
) -> None:
    """Publish what a run trained on the Hugging Face Hub, with a card of what was measured.

    The token is the hub's own: HF_TOKEN, or what hf auth login stored.
    """
    import tempfile

    from latentwire.publishing.publish import Publication
    from latentwire.runs import store

    _quiet()
    names = dict(_renaming(each) for each in call or ())
    publication = Publication(store.find(runs, run), runs, repo, checkpoint, anyway, names)
    if not dry_run:
        print(f"published {publication.publish(public=public)}")
        return
    with tempfile.TemporaryDirectory(prefix="latentwire-publish-") as folder:
        prepared = publication.prepare(Path(folder))
    print(prepared.card)
    for name, size in prepared.files.items():
        print(f"{size:>15,}  {name}")
    print(
        f"{sum(prepared.files.values()):>15,}  bytes in {len(prepared.files)} files for {repo}; nothing was sent"
    )


def _renaming(text: str) -> tuple[str, str]:
    local, equals, name = text.rpartition("=")
    if not equals or not local or "/" not in name:
        raise UserError(f"call: found {text!r}, expected LOCAL=OWNER/NAME, such as ./my-model=me/my-model.")
    return local, name


def _quiet() -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()

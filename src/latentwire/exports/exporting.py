"""What `latentwire export` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentwire.errors import UserError, one_of
from latentwire.exports import export_inputs, exported_models, exported_wires
from latentwire.files import write_atomically
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.loading.whole_folders import appearing
from latentwire.lm.model import LM
from latentwire.runs.store import find
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import locate

MANIFEST = "export.json"


def export(
    name: str,
    out: Path,
    *,
    runs: Path = Path("runs"),
    checkpoint: str = "best",
    contexts: Path | None = None,
    reader: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Write a run's model, or a trained wire's messages for some contexts, in a form that others read.

    Args:
        name: A run, STUDY/STAGE for its newest, or a trained wire: a folder, `embedded:NAME` or a hub id.
        out: The folder to write; it appears once it is whole.
        runs: The folder of all runs.
        checkpoint: `best` or `final`, of a run.
        contexts: For a wire, the file with contexts and questions.
        reader: For a wire with several readers, which one.
        dtype: What a wire's reader is loaded in, and so what is written.

    Returns:
        What `export.json` in the folder says.

    Raises:
        UserError: There is no such run or wire, the folder is there already, or another program could not read it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out: found {out} there already, expected a new or empty folder.")
    trained, label = _trained(name, runs, checkpoint)
    if not (trained / "wire.json").is_file():
        if contexts is not None:
            raise UserError(
                "contexts: found some for a model, expected some for a wire: its messages are exported."
            )
        with appearing(out) as folder:
            return _written(exported_models.write(trained, label, folder), folder)
    if contexts is None:
        raise UserError(
            "contexts: found none for a wire, expected a file of them: an encoder runs here, and what is exported "
            "are its messages."
        )
    asked = export_inputs.read(contexts)
    adapters = read_config(trained).adapters
    chosen = reader or next(iter(adapters))
    if chosen not in adapters:
        raise UserError(f"reader: found {chosen!r}, expected {one_of(chosen, adapters)}.")
    lm = LM.load(chosen, Loading.parse(dtype=dtype))
    with appearing(out) as folder:
        return _written(exported_wires.write(str(trained), lm, asked, folder), folder, wire=name)


def _trained(name: str, runs: Path, checkpoint: str) -> tuple[Path, str]:
    """The folder of what was trained, and the wire that a model was finetuned over."""
    try:
        run = find(runs, name)
    except UserError as unknown:
        try:
            return locate(name), ""
        except UserError:
            raise unknown from None
    folder = run.folder / "checkpoints" / checkpoint
    if not any((folder / file).is_file() for file in ("config.json", "wire.json")):
        raise UserError(
            f"run: found no checkpoint {checkpoint} in {run.folder}, expected a finished run that trains."
        )
    if changed := run.changed_artifacts(f"checkpoints/{checkpoint}"):
        raise UserError(
            f"run: {run.folder / changed[0]} is gone or not as the run left it, expected it unchanged."
        )
    return folder, str(run.record.configuration.get("wire", ""))


def _written(told: dict[str, Any], folder: Path, **more: Any) -> dict[str, Any]:
    manifest = {**told, **more}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest

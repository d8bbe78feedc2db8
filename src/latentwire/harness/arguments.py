"""Loads what `--model_args` names: a model or a run's checkpoint, and the wire to read over."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from latentwire import kinds, wires
from latentwire.errors import UserError
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.model import LM
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.runs.store import Run
from latentwire.wires import Wire

Checkpoint = Literal["best", "final"]


@dataclass(frozen=True)
class BoundReader:
    """A reader and the wire bound to it.

    Attributes:
        lm: the reader.
        wire: bound to it.
        source: the model as it was named.
        run: the folder of the run that it comes from, if any.
    """

    lm: LM
    wire: Wire
    source: str
    run: str | None


def load(
    model: str | LM | None,
    wire: str | None,
    run: str | None,
    checkpoint: str,
    *,
    adapter: str | None,
    loading: Loading,
    device: str | None,
    prompts: PromptSettings | None,
    options: dict[str, Any],
) -> BoundReader:
    """Load a reader and its wire.

    Args:
        model: what `LM.load` takes, or a loaded model.
        loading: how a model that is not loaded yet is loaded.
        prompts: how a model that is not loaded yet is asked, where lm-eval's own words are put into a chat.
        wire: KIND or KIND,OPTION=VALUE; None is the wire that the run was trained with, or `text` without a run.
        options: the wire's options as arguments of their own, because lm-eval splits at every comma.

    Raises:
        UserError: an argument is missing, unknown or wrong, or the checkpoint is not what the run wrote.
    """
    kinds.importable_here()
    if (model is None) == (run is None):
        found = "neither" if model is None else "both"
        raise UserError(f"model_args: found {found} of model and run, expected one of them.")
    source = str(model)
    if run is not None:
        folder, trained = _checkpoint(Path(run), checkpoint)
        source, wire = str(folder), wire if wire is not None or options else trained
    written = ",".join([wire or "text", *(f"{name}={value}" for name, value in options.items())])
    parsed = wires.parse(written)
    if isinstance(model, LM):
        if prompts is not None:
            model = copy(model)
            model.format = prompts.over(model.format, model)
        return BoundReader(model, parsed.bind(model), model.name, None)
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        device = None  # lm-eval asks for cuda:0 by default; its own model falls back too
    if loading.device_map is not None or loading.max_memory is not None:
        device = None
    lm = LM.load(source, loading, device=device, adapter=adapter, prompts=prompts)
    return BoundReader(lm, parsed.bind(lm), source, run)


def _checkpoint(folder: Path, checkpoint: str) -> tuple[Path, str]:
    """The folder of a run's checkpoint, and the wire that it was trained with."""
    if checkpoint not in get_args(Checkpoint):
        known = ", ".join(get_args(Checkpoint))
        raise UserError(f"model_args: found checkpoint={checkpoint}, expected one of {known}.")
    run = Run.read(folder)
    if run.record.kind != "finetune":
        raise UserError(f"model_args: found a run of kind {run.record.kind!r}, expected that of a finetuning.")
    place = f"checkpoints/{checkpoint}"
    if not any(path.startswith(f"{place}/") for path in run.record.artifacts):
        raise UserError(
            f"model_args: run {folder} ({run.record.kind}, {run.record.status}) has no {checkpoint} checkpoint; "
            "expected the run of a finished finetuning."
        )
    if changed := run.changed_artifacts(place):
        raise UserError(f"model_args: {folder / changed[0]} is gone or not as the run wrote it.")
    return folder / place, str(run.record.configuration.get("wire", "text"))

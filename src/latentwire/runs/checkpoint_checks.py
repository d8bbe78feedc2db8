"""Whether the checkpoints of runs load and give the logits that they were saved with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire import wires
from latentwire.errors import UserError
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.model import LM
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.runs.identity import model_folder
from latentwire.runs.store import ENDED, Run
from latentwire.runs.verification import RunFault
from latentwire.training import logit_probe
from latentwire.training.logit_probe import ASKED, CheckpointProbe
from latentwire.wires import Wire
from latentwire.wires.latent.latent_wire import Latent


def check_all(runs: Sequence[Run], progress: Callable[[int], None] = lambda more: None) -> Iterator[RunFault]:
    """Load every checkpoint of trainings that have ended, ask it again, and compare.

    Args:
        runs: which runs; others than finished trainings have no checkpoints.
        progress: called with 1 after each run.
    """
    for run in runs:
        if run.record.status in ENDED:
            for name in logit_probe.names(run.folder):
                yield from check(run, name)
        progress(1)


def check(run: Run, name: str) -> Iterator[RunFault]:
    """What is wrong with one checkpoint, or why it cannot be asked.

    Example:
        >>> list(check(find(Path("runs"), "quickstart/prefix_ft"), "best"))
        []
    """
    where = f"checkpoints/{name}"
    try:
        probe = logit_probe.read(run.folder, name)
    except UserError as error:
        yield RunFault(run.record.run, where, str(error), "checkpoint")
        return
    if probe is None:
        problem = "no logits were kept when it was saved: only its bytes can be checked"
        yield RunFault(run.record.run, where, problem, "unknown")
        return
    try:
        yield from _compared(run, name, probe)
    except Exception as error:  # whatever a library raises, a checkpoint that does not load is what is looked for
        reason = (str(error).splitlines() or [""])[0]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        yield RunFault(run.record.run, where, f"does not load or run ({kind}{reason})", "checkpoint")


@torch.no_grad()
def _compared(run: Run, name: str, probe: CheckpointProbe) -> Iterator[RunFault]:
    where = f"checkpoints/{name}"
    ask = _ask_wire if run.record.kind == "wire" else _ask_model
    for reader, expected in probe.readers.items():
        logits, dtype = ask(run, run.folder / where, reader, expected.dtype)
        # A kernel of another device rounds otherwise.
        moved = probe.device != ("cuda" if torch.cuda.is_available() else "cpu")
        problem = expected.differs(logits, rounded=moved or dtype != torch.float32)
        if problem is not None:
            of = f"read by {reader}, " if reader else ""
            yield RunFault(run.record.run, where, f"{of}{problem}", "checkpoint")


def _ask_model(run: Run, folder: Path, reader: str, dtype: str) -> tuple[Tensor, torch.dtype]:
    """A finetuned model over the wire that it was trained with."""
    lm = LM.load(folder)
    stored = next(iter(lm.model.parameters())).dtype
    wire = wires.parse(str(run.record.configuration.get("wire", "text"))).bind(lm)
    return _logits(lm, wire), stored


def _ask_wire(run: Run, folder: Path, reader: str, dtype: str) -> tuple[Tensor, torch.dtype]:
    """A trained wire, read by one of its readers."""
    configuration = run.record.configuration
    asked: dict[str, Any] = (configuration.get("prompts") or {}).get(reader) or {}
    prompts = PromptSettings.model_validate(asked) if asked else None
    bits = (configuration.get("bits") or {}).get(reader)
    loading = Loading.model_validate({"dtype": dtype, "bits": bits})
    lm = LM.load(model_folder(reader), loading, prompts=prompts)
    lm.name = reader
    wire = Latent(path=str(folder)).bind(lm)
    return _logits(wire.reader(lm), wire), lm.model.dtype


def _logits(lm: LM, wire: Wire) -> Tensor:
    prompts = [lm.format.encode(ASKED, lm)[0]]
    return lm.prefill(wire(prompts, lm)).logits[0]

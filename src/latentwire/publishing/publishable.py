"""Whether a run may be published: it is whole, nothing in it leaks, and no gate rejected it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation.audit import audit
from latentwire.lm.masks import attention
from latentwire.lm.model import LM
from latentwire.runs.store import Run
from latentwire.runs.verification import verify_run
from latentwire.wires import Wire
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import Latent

KINDS = ("finetune", "wire")
"""The kinds of stages that leave something to publish."""


def trained_folder(run: Run, checkpoint: str = "best") -> Path:
    """The folder of what a run has trained.

    Raises:
        UserError: The run trains nothing, or has no such checkpoint.
    """
    if run.record.kind not in KINDS:
        raise UserError(
            f"run: found one of kind {run.record.kind}, expected one that trains: of kind {' or '.join(KINDS)}."
        )
    folder = run.folder / "checkpoints" / checkpoint
    if not any((folder / name).is_file() for name in ("config.json", "wire.json")):
        raise UserError(f"checkpoint: found no {checkpoint} in {run.folder}, expected best or final.")
    return folder


def objections(run: Run, folder: Path, log: Callable[[str], None] = print) -> list[str]:
    """Why a run should not be published, one clause each; empty if nothing speaks against it.

    Args:
        run: The run.
        folder: What it has trained; it is loaded and audited.
        log: Called with what is looked at.

    Raises:
        UserError: The models that the audit needs cannot be loaded.
    """
    found = []
    if run.record.status == "rejected":
        lost = [gate["gate"] for gate in (run.record.results or {}).get("accept", ()) if not gate["held"]]
        found.append(f"it was rejected ({', '.join(dict.fromkeys(lost)) or 'a gate'} did not hold)")
    elif run.record.status != "done":
        found.append(f"it is {run.status}, not done")
    faults = [fault for fault in verify_run(run) if fault.fails]
    found += [f"{fault.where}: {fault.problem.rstrip('.')}" for fault in faults[:3]]
    if unknown := [name for name in _files(run, folder) if name not in run.record.artifacts]:
        found.append(f"{unknown[0]} has no hash in run.json")
    if faults or unknown:
        return found  # files that are not the run's own are not loaded
    if leak := _leaks(run, folder, log):
        found.append(leak)
    return found


def _files(run: Run, folder: Path) -> list[str]:
    return [path.relative_to(run.folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _leaks(run: Run, folder: Path, log: Callable[[str], None]) -> str:
    """What the run says of its own leaks, else what an audit of the weights finds; empty where nothing leaks."""
    configuration = run.record.configuration
    if configuration.get("force_leaky"):
        return f"it was trained over {configuration.get('wire')}, which leaks"
    readers = [str(folder)] if run.record.kind == "finetune" else list(read_config(folder).adapters)
    for name in readers:
        lm, wire = _read_with(run, folder, name)
        log(f"audit of {wire.label} with {lm.name}")
        if problems := audit(lm, wire, kernels=[attention.kernel(lm.model)], length=0).problems:
            return f"its audit failed: {'; '.join(problems)}"
    return ""


def _read_with(run: Run, folder: Path, name: str) -> tuple[LM, Wire]:
    """A model and the wire over which what was trained is read by it; of a latent wire, its reader's plain text.

    Latents hold no tokens that could be exchanged one by one: that no answer is in a message is what its
    `deranged` and `counterfactual` arms show. What can leak is how the reader attends.
    """
    lm = LM.load(name)
    if run.record.kind == "finetune":
        return lm, wires.parse(str(run.record.configuration["wire"]))
    Latent(path=str(folder)).bind(lm)  # all pieces are there, and fit the reader
    return lm, wires.parse("text")

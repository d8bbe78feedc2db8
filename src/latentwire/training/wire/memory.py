"""What a wire's training needs of memory and disk, measured before its first step, beside what there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.errors import UserError

GIB = 2**30
SHARE = 0.9
"""Of free memory, what a step may take: allocators leave gaps, and kernels need room to work in."""
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 0}
"""A trained number; Adafactor keeps a row and a column of each matrix."""


@dataclass(frozen=True)
class Needs:
    """What a training needs, in bytes.

    Attributes:
        weights: of all models and of the wire.
        gradients, optimizer: of what is trained.
        activations: kept for the backward pass by the largest part of a step.
        checkpoints: on disk: the newest snapshot while it replaces the one before, the best one and the final one.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    checkpoints: int

    @property
    def beyond_weights(self) -> int:
        """Memory that is not taken yet when the models are loaded."""
        return self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
        }
        return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in parts.items())


def static(modules: Iterable[nn.Module], trained: Iterable[Tensor], optimizer: str) -> Needs:
    """Everything but activations. modules: of models and wire; shared weights count once."""
    numbers = sum(tensor.numel() for tensor in trained)
    tensors = {id(each): each for module in modules for each in (*module.parameters(), *module.buffers())}
    kept = OPTIMIZER_BYTES[optimizer] * numbers
    return Needs(
        weights=sum(each.numel() * each.element_size() for each in tensors.values()),
        gradients=4 * numbers,
        optimizer=kept,
        activations=0,
        checkpoints=2 * (4 * numbers + kept) + 2 * 4 * numbers,
    )


def saved_bytes(run: Callable[[], Any], weights: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of `run`; views of one storage count once.

    Args:
        weights: not counted, since they are there anyway. A copy of one is.
    """
    known = {each.untyped_storage().data_ptr() for each in weights}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed storage's address would be given to the next one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Bytes that a training can still take on the device."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
        available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
        return available or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**63


def free_disk(folder: Path) -> int:
    """Bytes free where the folder is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_static(needs: Needs, free: int, disk: int | None = None) -> None:
    """Refuse what cannot fit whatever the size of a step.

    Args:
        free, disk: bytes there are; None where the folder is not known yet.

    Raises:
        UserError: memory or disk is too small; the message says what would fit.
    """
    if needs.gradients + needs.optimizer > SHARE * free:
        raise UserError(
            f"memory: found {free / GIB:.2f} GiB free beside the weights, expected "
            f"{needs.gradients / GIB:.2f} GiB for gradients and {needs.optimizer / GIB:.2f} for the optimizer; "
            "a lower rank, optimizer: adafactor or loading: {MODEL: {bits: 4}} needs less."
        )
    if disk is not None and needs.checkpoints > disk:
        raise UserError(
            f"disk: found {disk / GIB:.2f} GiB free, expected {needs.checkpoints / GIB:.2f} GiB for checkpoints; "
            "a lower rank needs less, or choose another folder for runs."
        )


@dataclass(frozen=True)
class StepPlan:
    """How a step is run so that it fits.

    Attributes:
        recomputes: layers run again in the backward pass.
        passes: how many parts a step is split into.
        activations: bytes that the largest part keeps for its backward pass.
    """

    recomputes: bool
    passes: int
    activations: int


def choose(plain: int, recomputed: int, asked: bool | None, budget: int, passes: int, most: int) -> StepPlan:
    """The fastest way to run a step that fits: as asked, else recomputing layers, else in more parts.

    Args:
        plain, recomputed: bytes that the activations of a whole step take, with and without recomputing.
        asked: whether layers shall be recomputed; None leaves it to the memory.
        budget: bytes there are for activations.
        passes: parts that a step is split into at least. most: at most, so that each has a passage.

    Raises:
        UserError: not even a single passage fits.
    """
    recomputes = asked if asked is not None else plain / passes > budget
    whole = recomputed if recomputes else plain
    while whole / passes > budget and passes < most:
        passes = min(2 * passes, most)
    if whole / passes > budget:
        other = "" if recomputes else "activation_checkpointing: true, "
        raise UserError(
            f"memory: found {budget / GIB:.2f} GiB free for activations, expected {whole / passes / GIB:.2f} GiB "
            f"for a single passage; {other}shorter contexts, fewer questions or a smaller model needs less."
        )
    return StepPlan(recomputes, passes, int(whole / passes))


def agreed(plans: Sequence[StepPlan]) -> StepPlan:
    """One plan for all processes, which must make equally many passes: the most careful of each."""
    return StepPlan(
        recomputes=any(plan.recomputes for plan in plans),
        passes=max(plan.passes for plan in plans),
        activations=max(plan.activations for plan in plans),
    )

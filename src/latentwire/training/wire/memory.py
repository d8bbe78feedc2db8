"""What a wire's training needs of memory and disk, measured before its first step, beside what there is."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.halving import emptied

GIB = 2**30
SHARE = 0.9
"""Of free memory, what a step may take: allocators leave gaps, and kernels need room to work in."""
TOO_MUCH = 2**62
"""Bytes of activations for which memory ran out while they were counted."""
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
        gradients_on, optimizer_on: the same as `gradients` and `optimizer`, by device.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    checkpoints: int
    gradients_on: Mapping[torch.device, int] = field(default_factory=dict)
    optimizer_on: Mapping[torch.device, int] = field(default_factory=dict)

    def fixed(self, device: torch.device) -> int:
        """What is needed on a device beside its weights, whatever the size of a step."""
        return self.gradients_on.get(device, 0) + self.optimizer_on.get(device, 0)

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
    numbers = Counter[torch.device]()
    for tensor in trained:
        numbers[tensor.device] += tensor.numel()
    count, each_kept = sum(numbers.values()), OPTIMIZER_BYTES[optimizer]
    tensors = {id(each): each for module in modules for each in (*module.parameters(), *module.buffers())}
    return Needs(
        weights=sum(each.numel() * each.element_size() for each in tensors.values()),
        gradients=4 * count,
        optimizer=each_kept * count,
        activations=0,
        checkpoints=2 * (4 + each_kept) * count + 2 * 4 * count,
        gradients_on={device: 4 * number for device, number in numbers.items()},
        optimizer_on={device: each_kept * number for device, number in numbers.items()},
    )


def saved_bytes(run: Callable[[], Any], weights: Iterable[Tensor] = ()) -> Counter[torch.device]:
    """Bytes that autograd keeps for the backward pass of `run`, by device; views of one storage count once.

    Args:
        weights: not counted, since they are there anyway. A copy of one is.
    """
    known = {each.untyped_storage()._cdata for each in weights}
    sizes = Counter[torch.device]()
    alive: list[Tensor] = []  # a freed storage's number would be given to the next one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            sizes[tensor.device] += storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sizes


def counted(run: Callable[[], Any], weights: Iterable[Tensor] = ()) -> Counter[torch.device] | None:
    """As `saved_bytes`; None if memory runs out meanwhile."""
    try:
        return saved_bytes(run, weights)
    except torch.OutOfMemoryError:
        pass
    emptied()  # after the handler: the exception holds on to the tensors of the pass that failed
    return None


def devices(tensors: Iterable[Tensor]) -> list[torch.device]:
    """Where tensors are; those that are loaded only when a layer runs (`meta`) are nowhere."""
    return [device for device in dict.fromkeys(tensor.device for tensor in tensors) if device.type != "meta"]


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


def check_static(needs: Needs, free: Mapping[torch.device, int], disk: int | None = None) -> None:
    """Refuse what cannot fit whatever the size of a step.

    Args:
        free: bytes there are on each device. disk: bytes there are; None where the folder is not known yet.

    Raises:
        UserError: a device's memory or the disk is too small; the message says what would fit.
    """
    for device, there in free.items():
        gradients, optimizer = needs.gradients_on.get(device, 0), needs.optimizer_on.get(device, 0)
        if gradients + optimizer > SHARE * there:
            raise UserError(
                f"memory: found {there / GIB:.2f} GiB free{_on(device, free)} beside the weights, expected "
                f"{gradients / GIB:.2f} GiB for gradients and {optimizer / GIB:.2f} for the optimizer; "
                "a lower rank, optimizer: adafactor or loading: {MODEL: {bits: 4}} needs less."
            )
    if disk is not None and needs.checkpoints > disk:
        raise UserError(
            f"disk: found {disk / GIB:.2f} GiB free, expected {needs.checkpoints / GIB:.2f} GiB for checkpoints; "
            "a lower rank needs less, or choose another folder for runs."
        )


def _on(device: torch.device, free: Mapping[torch.device, int]) -> str:
    return f" on {device}" if len(free) > 1 else ""


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


def plan(
    kept: Mapping[bool, Mapping[torch.device, int]],
    needs: Needs,
    free: Mapping[torch.device, int],
    asked: bool | None,
    passes: int,
    most: int,
) -> StepPlan:
    """How a step is run so that it fits on each device.

    Args:
        kept: bytes that the activations of a whole step take on each device, without (False) and with (True)
            recomputing.
        needs: what is there beside them. free: bytes there are on each device.
        asked, passes, most: as `choose` takes them.

    Raises:
        UserError: not even a single passage fits on one of them.
    """
    chosen = [
        choose(
            kept[False].get(device, 0),
            kept[True].get(device, 0),
            asked,
            int(SHARE * there) - needs.fixed(device),
            passes,
            most,
            _on(device, free),
        )
        for device, there in free.items()
    ]
    careful = agreed(chosen)
    activations = sum(kept[careful.recomputes].values()) // careful.passes
    return StepPlan(careful.recomputes, careful.passes, activations)


def choose(
    plain: int, recomputed: int, asked: bool | None, budget: int, passes: int, most: int, where: str = ""
) -> StepPlan:
    """The fastest way to run a step that fits: as asked, else recomputing layers, else in more parts.

    Args:
        plain, recomputed: bytes that the activations of a whole step take, with and without recomputing.
        asked: whether layers shall be recomputed; None leaves it to the memory.
        budget: bytes there are for activations.
        passes: parts that a step is split into at least. most: at most, so that each has a passage.
        where: names the device in a message.

    Raises:
        UserError: not even a single passage fits.
    """
    recomputes = asked if asked is not None else plain / passes > budget
    whole = recomputed if recomputes else plain
    while whole / passes > budget and passes < most:
        passes = min(2 * passes, most)
    if whole / passes > budget:
        other = "" if recomputes else "activation_checkpointing: true, "
        least = "more" if whole >= TOO_MUCH else f"{whole / passes / GIB:.2f} GiB"
        raise UserError(
            f"memory: found {budget / GIB:.2f} GiB free{where} for activations, expected "
            f"{least} for a single passage; {other}shorter contexts, fewer questions or a "
            "smaller model needs less."
        )
    return StepPlan(recomputes, passes, int(whole / passes))


def agreed(plans: Sequence[StepPlan]) -> StepPlan:
    """One plan for all processes and devices, which must make equally many passes: the most careful of each."""
    return StepPlan(
        recomputes=any(plan.recomputes for plan in plans),
        passes=max(plan.passes for plan in plans),
        activations=max(plan.activations for plan in plans),
    )

"""How a step's data is shared out among processes and cut into parts: the same rows, whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Spare:
    """A part that is run only because all processes must make equally many passes; it counts for nothing."""

    part: Any


def shares(items: Sequence[T], process: int, processes: int, passes: int = 1) -> list[list[T]]:
    """A process's share of a step, in as many parts as every other process has; some may be empty.

    Args:
        items: What a step holds, at least one.
        process: Which process.
        processes: How many there are.
        passes: In how many parts a share is to be cut, as far as it has as many items.

    Example:
        >>> [shares([1, 2, 3], process, 2, passes=2) for process in range(2)]
        [[[1], [3]], [[2], []]]
    """
    return parted(items[process::processes], -(-len(items) // processes), passes)


def parted(mine: Sequence[T], largest: int, passes: int) -> list[list[T]]:
    """A process's share cut into parts, as many as the `largest` share of any process is cut into."""
    size = -(-largest // passes)
    return [list(mine[at : at + size]) for at in range(0, largest, size)]


def numbers(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The values as numbers; those on a device are waited for once, together."""
    there = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not there:
        return {name: float(value) for name, value in values.items()}
    device = next(iter(there.values())).device
    read = torch.stack([value.detach().to(device, torch.float64) for value in there.values()]).tolist()
    found = dict(zip(there, read, strict=True))
    return {name: found[name] if name in found else float(value) for name, value in values.items()}


def summed(values: Mapping[str, float], accelerator: Any) -> dict[str, float]:
    """Each number's sum over all processes, which must have the same names."""
    if accelerator.num_processes == 1 or not values:
        return dict(values)
    numbers = [float(value) for value in values.values()]
    mine = torch.tensor(numbers, device=accelerator.device, dtype=torch.float64)
    total = accelerator.reduce(mine, "sum")
    return dict(zip(values, total.tolist(), strict=True))

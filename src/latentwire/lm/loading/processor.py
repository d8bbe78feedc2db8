"""What this machine's processor computes slowly."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

SLOW = 2.0
"""A layer in bfloat16 that takes this many times as long as one in float32 is worth a sentence."""


@cache
def bfloat16_slowdown() -> float:
    """How many times as long a linear layer takes on this processor in bfloat16 as in float32, measured.

    Some 6 to 12 where a processor has no instructions for bfloat16, and less than 1 where it has.
    """
    fastest: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        states, weight = torch.ones(128, 256, dtype=dtype), torch.ones(512, 256, dtype=dtype)
        took = []
        for _ in range(8):
            started = time.perf_counter()
            F.linear(states, weight)
            took.append(time.perf_counter() - started)
        fastest[dtype] = min(took)
    return fastest[torch.bfloat16] / fastest[torch.float32]


def remark(device: torch.device, log: Callable[[str], None], *, bfloat16: bool) -> None:
    """Log one sentence if bfloat16 is asked of a processor that computes it slowly.

    Args:
        device: Where it is computed.
        log: Called with the sentence.
        bfloat16: Whether that is in bfloat16.
    """
    if bfloat16 and device.type == "cpu" and (times := bfloat16_slowdown()) >= SLOW:
        log(
            f"bfloat16: this processor takes {times:.0f} times as long for it as for float32, the default on a CPU"
        )


def prefers_bfloat16() -> bool:
    """Whether this machine computes faster in bfloat16: it has an accelerator, or a processor that does."""
    return torch.cuda.is_available() or bfloat16_slowdown() < 1

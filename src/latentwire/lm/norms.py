"""RMS norms in one operation, where a modeling file writes them as eight.

PyTorch has one kernel for the norm and one for its gradient on GPUs. It rounds once, where the eight operations
round the normalized states before they are multiplied by the weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

DEVICES = ("cuda",)
"""Elsewhere the operation is made of the eight again."""
HALF = (torch.bfloat16, torch.float16)
_EPSILON = "variance_epsilon"
"""What modeling files call it whose norms are plain; those that add one to their weights call it `eps`."""
_FOUND: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()


@contextmanager
def fused(decoder: nn.Module) -> Iterator[None]:
    """Inside the block, plain RMS norms of a 16-bit decoder on a GPU are one operation each."""
    if decoder not in _FOUND:
        _FOUND[decoder] = _norms(decoder)
    norms = [norm for norm in _FOUND[decoder] if norm.weight.device.type in DEVICES and norm.weight.dtype in HALF]  # type: ignore[union-attr,operator]
    for norm in norms:
        norm.forward = MethodType(_normed, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normed(norm: Any, states: Tensor) -> Tensor:
    if states.dtype != norm.weight.dtype:
        out: Tensor = type(norm).forward(norm, states)
        return out
    # Not `rms_norm`: autocast would run it in float32.
    made: Tensor = torch.ops.aten._fused_rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)[0]
    return made


def _norms(decoder: nn.Module) -> list[nn.Module]:
    """The plain RMS norms of a decoder; one of each class is tried."""
    if not hasattr(torch.ops.aten, "_fused_rms_norm"):
        return []
    plain: dict[type[nn.Module], bool] = {}
    found = []
    for module in decoder.modules():
        if isinstance(getattr(module, "weight", None), Tensor) and hasattr(module, _EPSILON):
            kind = type(module)
            if "forward" in vars(module) or module.weight.is_meta:  # type: ignore[operator]
                continue
            if kind not in plain:
                plain[kind] = _is_plain(module)
            if plain[kind]:
                found.append(module)
    return found


def _is_plain(norm: Any) -> bool:
    """Whether a norm's states and their gradient are those of the operation."""
    device = norm.weight.device
    exact = copy.deepcopy(norm).float()
    numbers = torch.linspace(0.5, 1.5, exact.weight.numel(), device=device)
    exact.weight.data.copy_(numbers.view_as(exact.weight))
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            states = torch.linspace(-3, 2, 4 * len(numbers), device=device).view(4, -1).requires_grad_()
            normed = [run(states) for run in (exact, MethodType(_normed, exact))]
            gradients = [torch.autograd.grad(each.pow(3).sum(), states)[0] for each in normed]
    except (RuntimeError, TypeError):  # the operation is PyTorch's own and may change
        return False
    return all(torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in (normed, gradients))

"""The forward pass of PEFT's low-rank linear layers while they train in 16 bits, in few operations.

PEFT casts the input to the adapters' float32, which autocast casts back for each product, and rounds the update
twice before it is added: nine operations a layer and fourteen in the backward pass. Here they are three and five:
the update is added by the product that makes it, and all adapters of a model are cast in one operation a pass
(`cast`). Numbers differ by these roundings of the 16-bit format, in favour of fewer. Everything else about the
layers stays PEFT's: parameters, names, files, and every pass that is not under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

ADAPTER = "default"
"""PEFT's name of the only adapter that `inject` puts in."""
HALF = (torch.bfloat16, torch.float16)


class LowRankLinear(Linear):
    """PEFT's layer with another forward pass where that computes the same; `quick` makes one of PEFT's.

    Attributes:
        cast: the two matrices in 16 bits during a pass of the model, None at other times.
    """

    cast: tuple[Tensor, Tensor] | None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = _autocast(x.device.type)
        if args or kwargs or dtype is None or not self._fits(dtype):
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        base: Any = self.base_layer
        down, up = self.cast or (each.to(dtype) for each in self._matrices)
        made: Tensor = _LowRank.apply(x.to(dtype), base.weight, base.bias, down, up, self.scaling[ADAPTER])
        return made

    @property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        down, up = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        assert isinstance(down, Tensor)
        assert isinstance(up, Tensor)
        return down, up

    def _fits(self, dtype: torch.dtype) -> bool:
        base, drop = self.base_layer, self.lora_dropout[ADAPTER]
        return (
            base.weight.dtype == dtype
            and not base.weight.requires_grad
            and not (self._disable_adapters or self.merged_adapters)
            and not (isinstance(drop, nn.Dropout) and self.training)
        )


def quick(model: nn.Module) -> None:
    """Let the low-rank layers that `inject` has put into a model train in few operations.

    Layers of other kinds (quantized ones, other variants of low-rank adapters) keep PEFT's forward pass.
    """
    for module in model.modules():
        if type(module) is not Linear or module.fan_in_fan_out or module.lora_variant:
            continue
        base = module.base_layer
        # Device maps move inputs in a forward of their own; hooks want to be called.
        watched = "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks
        if type(base) is nn.Linear and not watched and not any(module.lora_bias.values()):
            module.__class__ = LowRankLinear
            module.cast = None  # type: ignore[assignment]


@contextmanager
def cast(model: nn.Module, device: str) -> Iterator[None]:
    """Inside the block, one cast serves all low-rank layers of a model; without autocast nothing happens.

    A layer that activation checkpointing runs again later casts its own matrices, to the same numbers.
    """
    dtype = _autocast(device)
    layers = (
        [each for each in model.modules() if type(each) is LowRankLinear and each._fits(dtype)] if dtype else []
    )
    if dtype is None or not layers:
        yield
        return
    made = iter(_Cast.apply(dtype, *(matrix for layer in layers for matrix in layer._matrices)))
    for layer in layers:
        layer.cast = (next(made), next(made))
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


def _autocast(device: str) -> torch.dtype | None:
    """The 16-bit format of autocast; None where it is off."""
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return dtype if dtype in HALF else None


class _Cast(torch.autograd.Function):
    """Casts many tensors in one operation, and their gradients back in another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [each.dtype for each in tensors]
        made = [torch.empty_like(each, dtype=dtype) for each in tensors]
        torch._foreach_copy_(made, list(tensors))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        given = [each for each in gradients if each is not None]
        kept = [dtype for dtype, each in zip(ctx.dtypes, gradients, strict=True) if each is not None]
        made = [torch.empty_like(each, dtype=dtype) for each, dtype in zip(given, kept, strict=True)]
        if made:
            torch._foreach_copy_(made, given)
        back = iter(made)
        return (None, *(None if each is None else next(back) for each in gradients))


class _LowRank(torch.autograd.Function):
    """`x @ weight.T + bias + scale * (x @ down.T) @ up.T`, all in one dtype; the weight is frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ down.T
        out = F.linear(flat, weight, bias).addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(flat, weight, down, up, inner)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        flat, weight, down, up, inner = ctx.saved_tensors
        whole = gradient.reshape(-1, gradient.shape[-1])
        for_x, _, _, for_down, for_up, _ = ctx.needs_input_grad
        inside = whole @ up
        if ctx.scale != 1:
            inside *= ctx.scale
        x = down_gradient = up_gradient = None
        if for_up:
            up_gradient = whole.T @ inner
            if ctx.scale != 1:
                up_gradient *= ctx.scale
        if for_down:
            down_gradient = inside.T @ flat
        if for_x:
            x = (whole @ weight).addmm_(inside, down).view(ctx.shape)
        return x, None, None, down_gradient, up_gradient, None

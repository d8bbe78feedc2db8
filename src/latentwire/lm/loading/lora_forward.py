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
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

ADAPTER = "default"
"""PEFT's name of the only adapter that `inject` puts in."""
HALF = (torch.bfloat16, torch.float16)
Ready = tuple[Tensor, Tensor | None, Tensor, Tensor, float]
"""Frozen weight, bias, the two matrices in the same dtype, and the update's scale."""
_LAYERS: WeakKeyDictionary[nn.Module, list[LowRankLinear]] = WeakKeyDictionary()


class LowRankLinear(Linear):
    """PEFT's layer with another forward pass where that computes the same; `quick` makes one of PEFT's.

    Attributes:
        ready: during a pass of the model, what `_LowRank` takes beside the input, with the two matrices cast; None
            at other times.
    """

    ready: Ready | None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ready = self.ready
        if ready is None and (dtype := _autocast(x.device.type)) is not None and self._fits(dtype):
            ready = self._with(*(each.to(dtype) for each in self._matrices))
        if args or kwargs or ready is None:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        made: Tensor = _LowRank.apply(x.to(ready[0].dtype), *ready)
        return made

    # These look into PyTorch's own dictionaries: modules look attributes up in Python, in every layer and pass.
    @property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        down, up = (self._modules[name]._modules[ADAPTER]._parameters["weight"] for name in ("lora_A", "lora_B"))  # type: ignore[union-attr]
        assert down is not None
        assert up is not None
        return down, up

    def _fits(self, dtype: torch.dtype) -> bool:
        weight = self._base["weight"]
        drop = self._modules["lora_dropout"]._modules[ADAPTER]  # type: ignore[union-attr]
        return (
            weight is not None
            and weight.dtype == dtype
            and not weight.requires_grad
            and not (self._disable_adapters or self.merged_adapters)
            and not (self.training and isinstance(drop, nn.Dropout))
        )

    @property
    def _base(self) -> dict[str, nn.Parameter | None]:
        return self._modules["base_layer"]._parameters  # type: ignore[union-attr]

    def _with(self, down: Tensor, up: Tensor) -> Ready:
        weight = self._base["weight"]
        assert weight is not None
        return weight, self._base["bias"], down, up, self.scaling[ADAPTER]


def quick(model: nn.Module) -> None:
    """Let the low-rank layers that `inject` has put into a model train in few operations.

    Layers of other kinds (quantized ones, other variants of low-rank adapters) keep PEFT's forward pass.
    """
    _LAYERS[model] = []
    for module in model.modules():
        if type(module) is not Linear or module.fan_in_fan_out or module.lora_variant:
            continue
        base = module.base_layer
        # Device maps move inputs in a forward of their own; hooks want to be called.
        watched = "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks
        if type(base) is nn.Linear and not watched and not any(module.lora_bias.values()):
            module.__class__ = LowRankLinear
            vars(module)["ready"] = None
            _LAYERS[model].append(module)  # type: ignore[arg-type]


@contextmanager
def cast(model: nn.Module, device: str) -> Iterator[None]:
    """Inside the block, one cast serves all low-rank layers of a model; without autocast nothing happens.

    A layer that activation checkpointing runs again later casts its own matrices, to the same numbers.
    """
    dtype = _autocast(device)
    layers = [
        each for each in _LAYERS.get(model, ()) if dtype and type(each) is LowRankLinear and each._fits(dtype)
    ]
    if dtype is None or not layers:
        yield
        return
    made = iter(_Cast.apply(dtype, *(matrix for layer in layers for matrix in layer._matrices)))
    for layer in layers:
        vars(layer)["ready"] = layer._with(next(made), next(made))
    try:
        yield
    finally:
        for layer in layers:
            vars(layer)["ready"] = None


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

"""Optimizers: what updates the weights, and how full weights fit on one card.

`OneByOne` updates one weight at a time in float32, whatever the weight is kept in. bfloat16 weights are rounded
stochastically: an update smaller than a weight's own rounding step is made with the probability that keeps its
mean instead of being lost (Zamirai et al., 2010.06192). With `release` each gradient is used and freed as soon as
the backward pass has made it (Lv et al., 2306.09782), so that all gradients are never held at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.training.loop_config import Loop

BETAS = (0.9, 0.95)


def make(settings: Loop, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Raises:
        UserError: `adamw8bit` is asked for where it cannot run.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adafactor":
        from transformers import Adafactor

        return Adafactor(parameters, lr=rate, weight_decay=decay, relative_step=False, scale_parameter=False)
    if settings.optimizer == "adamw8bit":
        check_8bit(parameters[0].device.type)
        make_8bit: Any = importlib.import_module("bitsandbytes.optim").AdamW8bit  # it has no types
        optimizer: torch.optim.Optimizer = make_8bit(parameters, lr=rate, betas=BETAS, weight_decay=decay)
        return optimizer
    fused = all(p.device.type in ("cuda", "cpu") for p in parameters)
    return torch.optim.AdamW(parameters, lr=rate, betas=BETAS, weight_decay=decay, fused=fused)


def check_8bit(device: str) -> None:
    """Raise a `UserError` if AdamW with 8-bit state cannot run on a device of this type."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer: found adamw8bit, and bitsandbytes is not installed; install it (pip install bitsandbytes) "
            "or choose adafactor, which needs less memory still."
        )
    if device != "cuda":
        raise UserError(f"optimizer: found adamw8bit on {device}, expected a GPU; choose adamw or adafactor here.")


class OneByOne:
    """An optimizer that holds one weight in float32 at a time.

    It has what the loop and the snapshots ask of an optimizer: `param_groups`, `step`, `zero_grad`, `state_dict`
    and `load_state_dict`.

    Args:
        parameters: The weights, of any dtype.
        optimizer: Makes the optimizer of their float32 stand-ins.
        clip: With `release`, the largest norm of one weight's gradient: the norm of all of them is known too late.
        release: Update each weight inside the backward pass, as soon as its gradient is there.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        clip: float,
        release: bool = False,
    ) -> None:
        self._clip, self.releases = clip, release
        self._weights = list(parameters)
        empty = [torch.empty(0, device=weight.device) for weight in self._weights]
        self._stand_ins = [nn.Parameter(tensor) for tensor in empty]
        self._inner = optimizer(self._stand_ins)
        self._draws: dict[torch.device, torch.Generator] = {}
        self._squares: list[Tensor] = []
        self._hooks = []
        if release:
            for index, weight in enumerate(self._weights):
                self._hooks.append(weight.register_post_accumulate_grad_hook(self._updating(index)))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._inner.param_groups

    def begin(self, seed: int) -> None:
        """Start a step: its roundings are a function of this seed."""
        self._squares = []
        for device in {weight.device for weight in self._weights}:
            self._draws[device] = torch.Generator(device).manual_seed(seed)

    def norm(self) -> Tensor:
        """The norm of the step's gradient; with `release`, of what has been updated so far."""
        if not self.releases:
            self._squares = [w.grad.float().square().sum() for w in self._weights if w.grad is not None]
        first = self._weights[0].device
        return torch.stack([square.to(first) for square in self._squares]).sum().sqrt()

    def clip(self) -> Tensor:
        """Scale the step's gradient down to the clipping norm; returns its norm before."""
        norm = self.norm()
        if not self.releases:
            scale = (self._clip / (norm + 1e-6)).clamp(max=1.0)
            for weight in self._weights:
                if weight.grad is not None:
                    weight.grad.mul_(scale.to(weight.grad))
        return norm

    def step(self) -> None:
        """Update what has not been updated in the backward pass."""
        for index, weight in enumerate(self._weights):
            if weight.grad is not None:
                self._update(index)

    def zero_grad(self) -> None:
        for weight in self._weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)

    def close(self) -> None:
        """End updating in backward passes."""
        for hook in self._hooks:
            hook.remove()

    def _updating(self, index: int) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            square = weight.grad.float().square().sum()
            self._squares.append(square)
            scale = (self._clip / (square.sqrt() + 1e-6)).clamp(max=1.0)
            # A gradient that is no number changes nothing here; the norm tells the loop of it.
            sound = torch.isfinite(square)
            weight.grad = torch.where(sound, weight.grad * scale.to(weight.grad), 0)
            self._update(index)

        return hook

    @torch.no_grad()
    def _update(self, index: int) -> None:
        weight, stand_in = self._weights[index], self._stand_ins[index]
        assert weight.grad is not None
        stand_in.data = weight.detach().float()
        stand_in.grad, weight.grad = weight.grad.float(), None
        self._inner.step()
        if weight.dtype == torch.bfloat16:
            weight.copy_(stochastically_rounded(stand_in.data, self._draws[weight.device]))
        elif stand_in.data_ptr() != weight.data_ptr():
            weight.copy_(stand_in.data)
        stand_in.grad = None
        stand_in.data = torch.empty(0, device=weight.device)


def stochastically_rounded(values: Tensor, draws: torch.Generator) -> Tensor:
    """Float32 values as bfloat16, rounded up or down at random so that their expected value stays.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> stochastically_rounded(torch.full((4096,), 1.001), draws).float().mean()  # about 1.001
    """
    noise = torch.randint(0, 2**16, values.shape, generator=draws, device=values.device, dtype=torch.int32)
    # bfloat16 is the upper half of float32: what the noise carries over is rounded up, the rest is cut off.
    bits = values.contiguous().view(torch.int32).add(noise).bitwise_and_(-(2**16))
    return bits.view(torch.float32).to(torch.bfloat16)

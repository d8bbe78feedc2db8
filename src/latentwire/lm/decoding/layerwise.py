"""A decoding step whose layers share one compiled function: compiling takes as long as one layer does.

A layer's input is written out in any case, since the residual and the norm both read it, so what is cut between
two layers could not have been one kernel. All layers must look alike to the compiler: each is given its own keys
and values, and does not ask which layer it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.files import cache_folder
from latentwire.lm.decoding.decode_step import DecodeStep, Split, begin, finish
from latentwire.lm.decoding.slots import Slots

Options = dict[str, str | int | bool | Callable[..., Any]]
KERNELS = "compiled"
"""Where in the folder of caches kernels are kept; PyTorch keeps them in a temporary one."""
WHOLE = ("rotary_emb", "norm")
"""Modules of a decoder, beside its layers, that are several operations and are compiled where they exist."""


def keep_kernels() -> None:
    """Keep what is compiled from now on, unless `TORCHINDUCTOR_CACHE_DIR` says where or no folder can be made."""
    folder = cache_folder() / KERNELS
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


class LayerStep(DecodeStep):
    """What one layer gets in a step."""

    def __init__(self, step: DecodeStep, layer: int) -> None:
        slots = step.slots
        self.keys, self.values = slots.keys[layer], slots.values[layer]
        self.every, self.lengths = slots.every, slots.lengths
        self.next_position, self.positions = slots.next_position, slots.positions
        self.span, self.split = step.span, step.split

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """As `DecodeStep.update`."""
        self.keys[self.every, :, self.lengths] = key[:, :, 0]
        self.values[self.every, :, self.lengths] = value[:, :, 0]
        return self.keys[:, :, : self.span], self.values[:, :, : self.span]

    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, scale: float | None
    ) -> Tensor:
        """As `DecodeStep.attend`, by our kernel."""
        assert self.split is not None
        factor = query.shape[3] ** -0.5 if scale is None else scale
        place = (self.lengths, self.next_position, self.positions)
        return self.split(query.squeeze(2), key, value, *place, window, factor)[:, None]


class Layerwise:
    """Compiles the layers of a model, and what comes before and after them, for one size of slots.

    Args:
        decoder: a Transformers decoder with its blocks in `layers`.
        options: of the compiler. backend: `inductor` but in tests.
    """

    def __init__(self, decoder: nn.Module, options: Options | None, backend: Any = "inductor") -> None:
        self._decoder = decoder
        self._how: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        self._how |= {"options": options} if backend == "inductor" else {"backend": backend}
        self._made: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self,
        states: Callable[[Tensor, Tensor, DecodeStep], Tensor],
        head: Callable[[Tensor], Tensor],
        slots: Slots,
        span: int,
        eos_ids: Tensor,
        split: Split | None = None,
    ) -> None:
        """As `decode_step.advance`; there must be a `split`."""
        begin(slots)
        with self._compiled():
            hidden = states(slots.tokens[:, None], slots.next_position[:, None], DecodeStep(slots, span, split))
        self._of(finish)(head, hidden, slots, eos_ids)

    def _of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self._made:
            self._made[function] = torch.compile(function, **self._how)
        return self._made[function]

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """Inside the block, layers and the modules of `WHOLE` run compiled."""
        every: Any = self._decoder.layers
        others = [getattr(self._decoder, name) for name in WHOLE if hasattr(self._decoder, name)]
        changed = [each for each in (*every, *others) if "forward" not in vars(each)]
        for each in changed:
            each.forward = MethodType(self._of(each.__class__.forward), each)
        for number, layer in enumerate(every):
            layer.forward = _given_its_own(layer.forward, number)
        try:
            yield
        finally:
            for each in changed:
                del each.forward


def _given_its_own(forward: Callable[..., Any], number: int) -> Callable[..., Any]:
    def run(*args: Any, past_key_values: Any = None, reading: Any = None, **kwargs: Any) -> Any:
        own = LayerStep(reading, number)
        return forward(*args, past_key_values=own, reading=own, **kwargs)

    return run

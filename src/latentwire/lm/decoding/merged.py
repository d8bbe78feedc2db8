"""Computes linear layers that read the same input as one product: query, key and value; the MLP's gate and up.

For a few tokens a product takes the time of reading its weights plus a launch, which dominates for small ones. The
merged weight is the only copy: the layers' own weights become views of it, so training, saving and in-place
changes work as before. Only safetensors' plain `save_file` refuses views; `Engine.release` gives every layer a
weight of its own again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Merging = Literal["none", "attention", "all"]
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
GROUPS: dict[Merging, tuple[tuple[str, ...], ...]] = {
    "none": (),
    "attention": (_ATTENTION,),
    "all": (_ATTENTION, _MLP),
}
"""Names of the layers of a module that are merged; families with other names have one product already."""


class Merged:
    """Some linear layers of one module as one product; `undo` gives each a weight of its own again.

    Attributes:
        weight: `(sum of the layers' outputs, inputs)`.
        bias: one number per output, or None.
    """

    def __init__(self, owner: nn.Module, names: Sequence[str]) -> None:
        self._owner = owner
        self._linears: dict[str, nn.Linear] = {name: owner.get_submodule(name) for name in names}  # type: ignore[misc]
        self._sizes = [each.out_features for each in self._linears.values()]
        self._parts = {name: _Part(self, n) for n, name in enumerate(names)}
        self._given: Tensor | None = None
        self._pieces: list[Tensor | None] = []
        self.weight = self._joined([each.weight for each in self._linears.values()])
        biases = [each.bias for each in self._linears.values() if each.bias is not None]
        self.bias = self._joined(biases) if biases else None

    def _joined(self, parameters: Sequence[Tensor]) -> Tensor:
        whole = torch.cat([parameter.data for parameter in parameters])
        for parameter, piece in zip(parameters, whole.split(self._sizes), strict=True):
            parameter.data = piece
        return whole

    def undo(self) -> None:
        for linear in self._linears.values():
            for parameter, whole in ((linear.weight, self.weight), (linear.bias, self.bias)):
                if whole is not None and parameter.untyped_storage().data_ptr() == whole.data_ptr():
                    parameter.data = parameter.data.clone()

    def enter(self) -> None:
        self._owner._modules.update(self._parts)

    def leave(self) -> None:
        self._owner._modules.update(self._linears)
        self._given, self._pieces = None, []

    def product(self, given: Tensor, part: int) -> Tensor:
        """A layer's output; the first layer that is called computes all of them."""
        # By identity: layers that get different tensors are computed separately.
        if given is not self._given or self._pieces[part] is None:
            self._given = given
            self._pieces = list(nn.functional.linear(given, self.weight, self.bias).split(self._sizes, -1))
        piece = self._pieces[part]
        assert piece is not None
        self._pieces[part] = None
        if all(each is None for each in self._pieces):
            # Keep nothing: a tensor that a compiled step leaves in an object becomes an output of its graph.
            self._given, self._pieces = None, []
        return piece


class _Part(nn.Module):
    """Replaces a layer during a step."""

    def __init__(self, merged: Merged, number: int) -> None:
        super().__init__()
        self._merged, self._number = merged, number

    def forward(self, given: Tensor) -> Tensor:
        return self._merged.product(given, self._number)


@torch.no_grad()
def merge(model: nn.Module, merging: Merging) -> list[Merged]:
    """Merge every group of plain linear layers; quantized, adapted, hooked or tied ones are left alone."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    groups = [
        Merged(module, names)
        for module in list(model.modules())
        for names in GROUPS[merging]
        if _mergeable([getattr(module, name, None) for name in names], uses)
    ]
    if groups and groups[0].weight.is_cuda:
        torch.cuda.empty_cache()  # the freed pieces are too small for the next merged weight
    return groups


@contextmanager
def applied(groups: Sequence[Merged]) -> Iterator[None]:
    """Inside the block, the model computes each group as one product."""
    for group in groups:
        group.enter()
    try:
        yield
    finally:
        for group in groups:
            group.leave()


def _mergeable(layers: Sequence[object], uses: Counter[int]) -> bool:
    linears = [each for each in layers if isinstance(each, nn.Linear)]
    if len(linears) < len(layers) or not all(map(_plain, linears)):
        return False
    kinds = {(each.in_features, each.weight.dtype, each.weight.device, each.bias is None) for each in linears}
    alone = all(uses[id(parameter)] == 1 for each in linears for parameter in each.parameters())
    return len(kinds) == 1 and alone


def _plain(linear: nn.Linear) -> bool:
    """Whether a layer has plain floating-point weights and no subclass, hook or patched `forward`."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks)
    return (
        type(linear) is nn.Linear
        and not any(hooks)
        and not {"forward", "_hf_hook"} & set(vars(linear))
        and all(
            type(each.data) is Tensor and each.is_floating_point() and each.is_contiguous() and not each.is_meta
            for each in linear.parameters()
        )
        and set(linear._parameters) == {"weight", "bias"}
    )

"""All weights of a model, sharded over the processes of a training by FSDP2 (Zhao et al., 2304.11277).

Every layer is gathered for its pass and let go after it; gradients and the optimizer's state exist in shares only.
What is read between steps (held-out examples, generated answers) reads gathered weights; what is written is the
whole model, so that it is the same whatever the number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from latentwire.lm.model import LM
from latentwire.process_group import Group


class Sharded:
    """A model whose weights are shared out among the processes of a group.

    Args:
        lm: The model; after `settle` it is whole again.
        step: The module whose forward is the training step; it holds the model.
        group: The processes.
    """

    def __init__(self, lm: LM, step: nn.Module, group: Group) -> None:
        self._lm, self._step, self._group = lm, step, group
        self._skeleton = _without_weights(lm.model)
        mesh = init_device_mesh(lm.device.type, (group.size,))
        decoder: Any = lm.model.get_decoder()
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(step, mesh=mesh)  # embeddings, last norm and head, which stay gathered during a step
        self._modules: list[Any] = [each for each in step.modules() if isinstance(each, FSDPModule)]
        # The outermost module has to be the first that FSDP meets; an evaluation comes before the first step.
        step._get_fsdp_state()._lazy_init()  # type: ignore[operator,union-attr]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block every process has all weights and can read alone; nothing may be trained."""
        for module in self._modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self._modules:
                module.reshard()
                module.set_reshard_after_forward(module is not self._step, recurse=False)

    def gathered(self) -> PreTrainedModel | None:
        """The whole model in main memory, in the first process; None in the others, which must call this too."""
        model = copy.deepcopy(self._skeleton) if self._group.leads else None
        for name, weight in self._lm.model.named_parameters():
            value = full(weight.detach())
            if model is not None:
                _put(model, name, value.cpu())
        if model is not None:
            model.tie_weights()
        return model

    def settle(self, restore: Callable[[PreTrainedModel], None]) -> None:
        """End sharding: the model is whole again, on this process's device; `restore` puts its weights in."""
        device, dtypes = self._lm.device, {n: p.dtype for n, p in self._lm.model.named_parameters()}
        model = self._skeleton
        for name, weight in list(model.named_parameters()):
            _put(model, name, torch.empty(weight.shape, dtype=dtypes[name], device=device))
        model.tie_weights()
        restore(model)
        self._lm.model = model


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor; of a sharded one all processes must ask for it together."""
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        # Shares of different sizes leave room behind the last number, which no file should hold.
        return whole.clone() if whole.untyped_storage().nbytes() > whole.nbytes else whole
    return tensor


def like(whole: Tensor, sharded: Tensor) -> Tensor:
    """This process's share of a whole tensor, where `sharded` is one; else the tensor itself."""
    if not isinstance(sharded, DTensor) or whole.shape != sharded.shape:
        return whole
    on_device = whole.to(sharded.device)
    return distribute_tensor(on_device, sharded.device_mesh, sharded.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """This process's share of a sharded tensor; a plain one itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model whose weights take no memory."""
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
    copied: PreTrainedModel = copy.deepcopy(model, memo)
    return copied


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, nn.Parameter(value, requires_grad=False))

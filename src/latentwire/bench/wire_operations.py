"""The operations that a training step of a wire dispatches, by pass: each costs the host a launch, whatever its
size.

On a GPU a step of a small model takes as long as Python and the launches of its operations, not as long as their
arithmetic. Their number does not depend on the machine, nor on the widths of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latentwire.bench.setup import BenchRow, Setup
from latentwire.bench.wire_first import modules_of
from latentwire.bench.wire_train import RATIO, WireBatch, step_of
from latentwire.lm.model import LM
from latentwire.lm.tapping import depth
from latentwire.training import optimizers
from latentwire.training.loop_config import Loop
from latentwire.training.training_step import first_right
from latentwire.training.wire.part import Part
from latentwire.training.wire.wire_step import WireStep

Made = TypeVar("Made")
FREE = frozenset({"detach", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty"})
"""Operations that launch nothing, beside views."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched inside the block.

    Attributes:
        launched: by name, operations that compute something.
        free: how many others: views and allocations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.free = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.overloadpacket).removeprefix("aten.")
        if name in FREE or any(
            each.alias_info and not each.alias_info.is_write for each in function._schema.returns
        ):
            self.free += 1
        elif not name.startswith("profiler."):
            self.launched[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """How many operations compute something."""
        return self.launched.total()


def count(step: WireStep, part: Part, device: str) -> dict[str, Operations]:
    """By pass, what one step under autocast to bfloat16 dispatches, as `training.loop` runs it."""
    found: dict[str, Operations] = {}

    def watched(name: str, run: Callable[[], Made]) -> Made:
        with Operations() as found[name]:
            return run()

    [evidence] = step.evidence(part)

    def losses() -> Tensor:
        terms = [(term.weight, term.loss(evidence)) for term in step._objectives]
        first_right([evidence])
        return torch.stack([weight * loss for weight, loss in terms if loss is not None]).sum()

    weights = [each for each in step.parameters() if each.requires_grad]
    optimizer = optimizers.make(Loop(steps=1), weights)
    for weight in weights:  # the first update makes the optimizer's state
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()

    def update() -> None:
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with torch.autocast(device, torch.bfloat16):
        watched("teacher", lambda: evidence.teacher)
        message = watched("encoder", lambda: evidence.message.tensors)
        watched("student", lambda: evidence.student)
        total = watched("losses", losses)
    above = watched("student, backward", lambda: torch.autograd.grad(total, message))
    watched("encoder, backward", lambda: torch.autograd.backward(message, above))
    watched("update", update)
    return found


def measure(setup: Setup, lm: LM) -> Iterator[BenchRow]:
    """A row for each pass: operations and views, for each layer."""
    layers, part = depth(lm), WireBatch(4, 64, questions=4).part(lm)
    step = step_of(lm, modules_of(lm, RATIO).train())
    for name, found in count(step, part, setup.device.type).items():
        figures: dict[str, float | None] = {
            "operations": found.total,
            "operations_per_layer": found.total / layers,
        }
        most = ", ".join(f"{each} {number / layers:.1f}" for each, number in found.launched.most_common(6))
        yield BenchRow(f"launches: {name}", {**figures, "views_per_layer": found.free / layers}, {}, most)

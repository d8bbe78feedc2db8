"""The forward and backward passes of one training step, in as many parts and processes as it is split into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from latentwire.lm.compiling import paused
from latentwire.training import not_finite
from latentwire.training.loop_config import Loop
from latentwire.training.not_finite import NotFinite
from latentwire.training.schedules import seed_of
from latentwire.training.sharing import Spare
from latentwire.training.trainee import Trainee
from latentwire.training.training_step import Losses


class Passed(NamedTuple):
    """What the passes of one step came to: its parts, the labels in all processes, sums over the parts, and the
    objectives' gradient norms."""

    parts: Sequence[Any]
    labels: float
    sums: dict[str, Tensor | int]
    norms: dict[str, float]


class StepPasses:
    """Runs the passes of steps; gradients are left in the weights.

    Args:
        trainee: What is trained.
        settings: Of the training.
        accelerator: Knows the processes and the precision.
        step: The trainee's step as it is called in this process.
        sharded: Weights are sharded: gradients with respect to them cannot be asked for outside a backward pass.
        agree: Called with this process's labels of a step; returns those of all processes, or raises.
        heed: Called before each pass.
        log: Called with one sentence at a time.
    """

    def __init__(
        self,
        trainee: Trainee,
        settings: Loop,
        accelerator: Accelerator,
        step: Any,
        *,
        sharded: bool,
        agree: Callable[[int], float],
        heed: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._trainee, self._settings, self._accelerator, self._step = trainee, settings, accelerator, step
        self._sharded, self._agree, self._heed, self._log = sharded, agree, heed, log
        self._kinds = trainee.step.kinds

    def run(self, done: int, zero_grad: Callable[[], None], *, logged: bool) -> Passed:
        """All passes of the step after `done` others; after an out-of-memory error again, in smaller parts.

        Raises:
            torch.OutOfMemoryError: Parts cannot be smaller, or several processes would cut the step differently.
            NotFinite: A loss was no finite number, and its gradients would have been used at once.
        """
        while True:
            torch.manual_seed(self._seed(done))
            try:
                return self._all(done, logged)
            except torch.OutOfMemoryError:
                # Processes that cut a step differently would wait for each other, and an update is not made twice.
                alone = self._accelerator.num_processes == 1 and not self._settings.releases
                if not alone or not self._trainee.split_further():
                    raise
            # After the handler: the exception holds on to the tensors of the pass that failed.
            zero_grad()
            if self._trainee.device.type == "cuda":
                torch.cuda.empty_cache()
            self._log(f"out of memory in step {done}: steps are split into twice as many parts")

    def _seed(self, done: int) -> int:
        """What dropout draws in a step; processes read different rows and draw differently."""
        index = self._accelerator.process_index
        return seed_of(self._settings.seed, f"step/{done}" + (f"/{index}" if index else ""))

    def _all(self, done: int, logged: bool) -> Passed:
        accelerator, trainee, adapting = self._accelerator, self._trainee, self._trainee.adapting
        shared = trainee.parts(done, accelerator.process_index, accelerator.num_processes)
        parts = [part for part in shared if not isinstance(part, Spare)]
        labels = self._agree(sum(map(trainee.labels, parts)))
        sums: dict[str, Tensor | int] = defaultdict(int)
        # All processes add up the same names, whatever their parts hold.
        sums |= {f"term/{kind}": 0 for kind in self._kinds} | {f"skipped/{kind}": 0 for kind in self._kinds}
        norms: dict[str, float] = {}
        for number, part in enumerate(shared):
            self._heed()
            spare = isinstance(part, Spare)
            asked = number == 0 and (logged or adapting.wants_norms)
            with paused() if asked else nullcontext():
                losses = self._losses(part.part if spare else part, done)
            if asked:
                # Of a spare part too: where weights are sharded, all processes must do the same.
                found = gradient_norms(losses)
                norms = {} if spare else found
            if self._settings.releases and not bool(torch.isfinite(losses.total)):
                self.fail(done, parts, {"loss": float(losses.total) / labels})
            # Gradients are averaged over processes: the sum over all labels needs their number back.
            weight = 0 if spare else accelerator.num_processes / labels
            accelerator.backward(losses.total * weight)
            if spare:
                continue
            sums["total"] += losses.total.detach()
            sums["right"] += losses.first_right
            sums["firsts"] += losses.firsts
            for name, term in losses.terms.items():
                sums[f"term/{name}"] += term.detach()
            for name, count in losses.skipped.items():
                sums[f"skipped/{name}"] += count
        for name in ("total", "right", "firsts"):
            sums[name] += 0
        return Passed(parts, labels, sums, norms)

    def _losses(self, part: Any, done: int) -> Losses:
        share = done / self._settings.steps
        # Accelerate has put the precision into the forward of what it has prepared.
        with self._accelerator.autocast() if self._sharded else nullcontext():
            losses: Losses = self._step(part, share)
        return losses

    def fail(self, done: int, parts: Sequence[Any], values: Mapping[str, float]) -> None:
        """Raise `NotFinite`, with the batch and the objective that the values come from."""
        terms: list[str] = []
        indices: list[int] = []
        if not self._settings.releases and not self._sharded:
            torch.manual_seed(self._seed(done))
            share, step = done / self._settings.steps, self._accelerator.unwrap_model(self._step)
            weights = [p for p in self._trainee.module.parameters() if p.requires_grad]
            with self._accelerator.autocast(), paused():
                indices, terms = not_finite.culprits(parts, lambda part: step(part, share), weights)
        bad = [parts[index] for index in indices] or parts
        examples = [name for part in bad for name in self._trainee.examples(part)]
        raise NotFinite(not_finite.sentence(done + 1, values, terms, examples))


def gradient_norms(losses: Losses) -> dict[str, float]:
    """Of each objective, with respect to hidden states or message: through parameters they would break DDP."""
    norms = {}
    for name, term in losses.terms.items():
        at = [tensor for tensor in losses.at if tensor.requires_grad]
        if not term.requires_grad or not at:  # it was left out of this step, or nothing is trained below
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(term / losses.labels, at, retain_graph=True, allow_unused=True)
        squares = (float(gradient.float().square().sum()) for gradient in gradients if gradient is not None)
        norms[name] = float(sum(squares) ** 0.5)
    return norms

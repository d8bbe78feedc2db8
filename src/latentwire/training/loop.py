"""The training loop, on Accelerate: it resumes exactly, judges when to stop, and keeps its best checkpoint."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor

from latentwire.errors import UserError
from latentwire.training import checkpoints
from latentwire.training.config import Loop
from latentwire.training.diagnostics import Diagnostics, memory_gib
from latentwire.training.schedules import learning_rate_share
from latentwire.training.step import Losses
from latentwire.training.stopping import Judge
from latentwire.training.trainee import Trained, Trainee

BEST_SO_FAR = ".best"
"""Snapshot of the best weights until the end turns it into the folder `best`."""


class Training:
    """The state of one training, from its first step to its last checkpoint."""

    def __init__(self, trainee: Trainee, settings: Loop, folder: Path, log: Callable[[str], None]) -> None:
        self.trainee, self.settings, self.folder, self.log = trainee, settings, folder, log
        # One process may carry out stages of different precision; Accelerate keeps the first one's otherwise.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=trainee.device.type == "cpu",
            mixed_precision="bf16" if settings.precision == "bf16" else "no",
            # Not every step reaches every weight: an encoder that gives keys never uses its last layer's output.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        optimizer = _optimizer(settings, [p for p in trainee.module.parameters() if p.requires_grad])
        # What is trained for a reader stands where the reader does, which need not be the first GPU.
        stay = [False, None] if self.accelerator.distributed_type == DistributedType.NO else None
        self.step, self.optimizer = self.accelerator.prepare(trainee.step, optimizer, device_placement=stay)
        self.judge = Judge(settings.stopping)
        self.done, self.tokens, self.seconds, self.stopped = 0, 0, 0.0, ""
        self.resumed = self._resume()
        self.diagnostics = Diagnostics(folder, self.done, writes=self.accelerator.is_main_process)

    def train(self, progress: Callable[[int, int], None] | None) -> None:
        settings = self.settings
        try:
            if not self.resumed:
                self._evaluate()
            while self.done < settings.steps and not self.stopped:
                self._train_step()
                if progress:
                    progress(self.done, settings.steps)
                if self.done % settings.eval_steps == 0 or self.done == settings.steps or self.stopped:
                    self._evaluate()
        finally:
            self.trainee.mode(False)
        self.stopped = self.stopped or "steps"

    def _train_step(self) -> None:
        settings, accelerator, trainee = self.settings, self.accelerator, self.trainee
        started = time.monotonic()
        torch.manual_seed(seed_of(settings.seed, f"step/{self.done}"))
        trainee.mode(True)
        logged = self.done % settings.log_steps == 0
        adapting = trainee.adapting
        while (passed := self._passes(logged)) is None:
            torch.manual_seed(seed_of(settings.seed, f"step/{self.done}"))
        labels, sums, norms = passed
        norm = accelerator.clip_grad_norm_(self.step.parameters(), settings.clip)
        share = learning_rate_share(
            settings.schedule, self.done, settings.steps, settings.warmup_steps, settings.final_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        self.optimizer.step()
        self.optimizer.zero_grad()
        found = _summed(accelerator, _numbers(sums))
        loss = found["total"] / labels
        accuracy = found["right"] / found["firsts"] if found["firsts"] else None
        adapting.stepped(accuracy, {name: int(n) for name, n in _under(found, "skipped/").items()})
        # Where the text was read the norms are those of hidden states, not of a message.
        if adapting.wants_norms and accuracy is not None:
            adapting.measured(
                {n: each / accelerator.num_processes for n, each in _summed(accelerator, norms).items()}
            )
        self.tokens += trainee.tokens(self.done)
        self.done += 1
        self.seconds += time.monotonic() - started
        if logged:
            line = {
                "step": self.done,
                "tokens": self.tokens,
                "seconds": round(self.seconds, 3),
                "learning_rate": settings.learning_rate * share,
                "loss": loss,
                "objectives": {name: value / labels for name, value in _under(found, "term/").items()},
                "gradient_norm": None if norm is None else float(norm),
                "objective_gradient_norms": norms,
                "first_token_accuracy": accuracy,
                "memory_gib": round(memory_gib(), 3),
                "adapting": adapting.state(),
            }
            self.diagnostics.write(line)
        self.stopped = self.judge.trained(self.done - 1, loss) or ""

    def _passes(self, logged: bool) -> tuple[float, dict[str, Tensor | int], dict[str, float]] | None:
        """Forward and backward of all parts of a step.

        Returns:
            How many tokens were learned in all processes, sums over the parts, and the objectives' gradient norms.
            None if it ran out of memory and its parts are smaller from now on.
        """
        try:
            return self._pass_all(logged)
        except torch.OutOfMemoryError:
            # Processes that cut a step differently would wait for each other.
            if self.accelerator.num_processes > 1 or not self.trainee.split_further():
                raise
        # After the handler: the exception holds on to the tensors of the pass that failed.
        self.optimizer.zero_grad()
        if self.trainee.device.type == "cuda":
            torch.cuda.empty_cache()
        self.log(f"out of memory in step {self.done}: steps are split into twice as many parts")
        return None

    def _pass_all(self, logged: bool) -> tuple[float, dict[str, Tensor | int], dict[str, float]]:
        accelerator, trainee, adapting = self.accelerator, self.trainee, self.trainee.adapting
        parts = trainee.parts(self.done, accelerator.process_index, accelerator.num_processes)
        labels = _summed(accelerator, {"labels": sum(map(trainee.labels, parts))})["labels"]
        sums: dict[str, Tensor | int] = defaultdict(int)
        norms: dict[str, float] = {}
        for part in parts:
            losses: Losses = self.step(part, self.done / self.settings.steps)
            adapts = adapting.wants_norms and losses.firsts > 0
            if not norms and (logged or adapts):
                norms = _gradient_norms(losses)
            # Gradients are averaged over processes: the sum over all labels needs their number back.
            accelerator.backward(losses.total * accelerator.num_processes / labels)
            sums["total"] += losses.total.detach()
            sums["right"] += losses.first_right
            sums["firsts"] += losses.firsts
            for name, term in losses.terms.items():
                sums[f"term/{name}"] += term.detach()
            for name, count in losses.skipped.items():
                sums[f"skipped/{name}"] += count
        return labels, sums, norms

    def _evaluate(self) -> None:
        self.trainee.mode(False)
        found = self.trainee.evaluate()
        accuracy = found.right / max(1, found.firsts)
        stop = self.judge.evaluated(self.done, found.loss, accuracy)
        if stop and self.done:
            self.stopped = self.stopped or stop
        self.diagnostics.write(
            {
                "step": self.done,
                "tokens": self.tokens,
                "seconds": round(self.seconds, 3),
                "eval_loss": found.loss,
                "eval_first_token_accuracy": accuracy,
                "eval_documents": found.firsts,
            }
        )
        self.diagnostics.samples(self.done, self.trainee.samples())
        self.log(
            f"step {self.done} of {self.settings.steps}: evaluation loss {found.loss:.4f}, "
            f"first token right {accuracy:.3f}, n={found.firsts}"
        )
        # The best first: killed in between, the evaluation is repeated and writes the same best again.
        if self.judge.best_step == self.done:
            self._save(BEST_SO_FAR, with_optimizer=False)
        self._save("last", with_optimizer=True)

    def _save(self, name: str, *, with_optimizer: bool) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        judge = {f.name: getattr(self.judge, f.name) for f in fields(self.judge) if f.name != "settings"}
        state = {
            "step": self.done,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "judge": judge,
            "rows": self.trainee.sha256(),
            "adapting": self.trainee.adapting.state(),
        }
        optimizer = self.optimizer.optimizer if with_optimizer else None
        checkpoints.save(self.folder / "checkpoints" / name, self.trainee.module, optimizer, state)

    def _resume(self) -> bool:
        found = checkpoints.find(self.folder / "checkpoints" / "last")
        if found is None:
            return False
        state = checkpoints.load(found, self.trainee.module, self.optimizer.optimizer)
        if state["rows"] != self.trainee.sha256():
            raise UserError(f"resume: {found} was trained on other rows than these; start a fresh run.")
        self.done, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.stopped = state["stopped"]
        self.trainee.adapting.restore(state["adapting"])
        self.judge = Judge(self.settings.stopping, **state["judge"])
        self.log(f"resumed at step {self.done} of {self.settings.steps}")
        return True

    def finish(self) -> Trained:
        """Turn the snapshots into the folders `final` and `best`; what was trained ends as the best one."""
        places, module = self.folder / "checkpoints", self.trainee.module
        if self.accelerator.is_main_process:
            if all(bool(torch.isfinite(weight).all()) for weight in checkpoints.trained(module).values()):
                self.trainee.export(places / "final")
            else:
                self.log("the last weights are not finite numbers: there is no final checkpoint, only the best")
            if checkpoints.find(places / BEST_SO_FAR) is not None:
                checkpoints.load(places / BEST_SO_FAR, module)
                self.trainee.export(places / "best")
                checkpoints.remove(places / BEST_SO_FAR)
        self.accelerator.wait_for_everyone()
        self.trainee.settle(places / "best")
        return Trained(
            steps=self.done,
            stopped=self.stopped,
            best_step=self.judge.best_step,
            best_loss=self.judge.best_loss,
            peak_accuracy=self.judge.peak_accuracy,
            peak_step=self.judge.peak_step,
            final_accuracy=self.judge.last_accuracy,
            train_rows_sha256=self.trainee.sha256(),
            tokens=self.tokens,
            seconds=self.seconds,
            skipped=dict(self.trainee.adapting.skipped),
        )


def _optimizer(settings: Loop, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if settings.optimizer == "adafactor":
        from transformers import Adafactor

        return Adafactor(
            parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            relative_step=False,
            scale_parameter=False,
        )
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=all(p.device.type in ("cuda", "cpu") for p in parameters),
    )


def _gradient_norms(losses: Losses) -> dict[str, float]:
    """Of each objective, with respect to hidden states or message: through parameters they would break DDP."""
    norms = {}
    for name, term in losses.terms.items():
        if not term.requires_grad:  # it was left out of this step
            norms[name] = 0.0
            continue
        at = [each for each in losses.at if each.requires_grad]
        alive = at and term.requires_grad
        found = (
            torch.autograd.grad(term / losses.labels, at, retain_graph=True, allow_unused=True) if alive else ()
        )
        norms[name] = float(sum(float(each.float().square().sum()) for each in found if each is not None) ** 0.5)
    return norms


def _numbers(sums: Mapping[str, Tensor | int]) -> dict[str, float]:
    """What stands on devices as numbers; the first that is asked for waits for the step."""
    return {name: float(each) for name, each in sums.items()}


def _summed(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    """Each number's sum over all processes, which must have the same names."""
    if accelerator.num_processes == 1 or not values:
        return dict(values)
    mine = torch.tensor([float(each) for each in values.values()], device=accelerator.device, dtype=torch.float64)
    total: Tensor = accelerator.reduce(mine, "sum")
    return dict(zip(values, total.tolist(), strict=True))


def _under(values: Mapping[str, float], start: str) -> dict[str, float]:
    return {name.removeprefix(start): each for name, each in values.items() if name.startswith(start)}


def seed_of(seed: int, name: str) -> int:
    """Every random draw is a function of the study's seed and of what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")

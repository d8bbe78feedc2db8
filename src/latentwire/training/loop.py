"""The training loop, on Accelerate: it resumes exactly, judges when to stop, and keeps its best checkpoints.

In several processes each step's rows are shared out (`sharing`), adapters and wires are trained data-parallel
(DDP), all weights of a model are sharded (`sharding`), and the first process alone writes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor

from latentwire import process_group
from latentwire.lm.loading import processor
from latentwire.training import checkpoints, logit_probe, optimizers, snapshots
from latentwire.training.checkpoints import LAST
from latentwire.training.diagnostics import Diagnostics, memory_gib
from latentwire.training.held_out import HeldOut, HeldOutResults
from latentwire.training.interruption import Interrupted, Interruption
from latentwire.training.loop_config import Loop
from latentwire.training.not_finite import NotFinite
from latentwire.training.schedules import learning_rate_share, seed_of
from latentwire.training.sharding import Sharded, full
from latentwire.training.sharing import numbers, summed
from latentwire.training.snapshots import CHECKPOINTS, hidden
from latentwire.training.step_passes import StepPasses
from latentwire.training.stopping import Judge
from latentwire.training.trainee import Trained, Trainee


class Training:
    """The state of one training, from its first step to its last checkpoint.

    Args:
        trainee: What is trained, and on what.
        settings: Steps, rates, and when to look.
        folder: Gets `diagnostics.jsonl`, `samples/` and `checkpoints/`; a snapshot there is continued from.
        log: Called with one sentence at a time.
    """

    def __init__(self, trainee: Trainee, settings: Loop, folder: Path, log: Callable[[str], None]) -> None:
        self.trainee, self.settings, self.folder, self.log = trainee, settings, folder, log
        self.places = folder / CHECKPOINTS
        # One process may carry out stages of different precision; Accelerate keeps the first one's otherwise.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=trainee.device.type == "cpu",
            mixed_precision="bf16" if settings.precision == "bf16" else "no",
            # Not every step reaches every weight: an encoder that gives keys never uses its last layer's output.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.group = process_group.current()
        self.sharded: Sharded | None = trainee.shard(self.group)
        # What is trained for a reader stands where the reader does, which need not be the first GPU.
        stay = [False] if self.accelerator.distributed_type == DistributedType.NO else None
        step = trainee.step if self.sharded else self.accelerator.prepare(trainee.step, device_placement=stay)
        self.weights = [p for p in trainee.module.parameters() if p.requires_grad]
        self.one_by_one = self._one_by_one()
        self.optimizer: Any = self.one_by_one or optimizers.make(settings, self.weights)
        self.judge = Judge(settings.stopping)
        self.interruption = Interruption()
        self.held_out = HeldOut(trainee, self.group, self._heed)
        self.passes = StepPasses(
            trainee,
            settings,
            self.accelerator,
            step,
            sharded=self.sharded is not None,
            agree=self._agreed,
            heed=self._heed,
            log=log,
        )
        self.done, self.tokens, self.seconds, self.stopped = 0, 0, 0.0, ""
        self.pending = True  # the evaluation after the steps that are done
        self.text: dict[str, float] | None = None
        self._saved_at = time.monotonic()
        self._saved: tuple[int, bool] | None = None
        self.finished = snapshots.finished(self.places, trainee.sha256())
        if self.finished is None:
            self._resume()
            writes = self.group.leads
            self.diagnostics = Diagnostics(folder, self.done, evaluated=not self.pending, writes=writes)

    def _one_by_one(self) -> optimizers.OneByOne | None:
        settings = self.settings
        if not settings.one_by_one:
            return None
        return optimizers.OneByOne(
            self.weights,
            lambda stand_ins: optimizers.make(settings, stand_ins),
            clip=settings.clip,
            release=settings.releases,
        )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside the block the trainee can be read from, whole, in every process."""
        self.trainee.mode(False)
        with self.sharded.whole() if self.sharded else nullcontext():
            yield

    def train(self, progress: Callable[[int, int], None] | None) -> None:
        """Train to the last step, or until something ends training before it.

        Raises:
            NotFinite: A loss or gradient was no finite number. The weights before that step are in the snapshot
                `last`, the best ones in `best`.
            SystemExit: SIGTERM asked for a stop; a snapshot was written, and the status is 143.
            KeyboardInterrupt: Ctrl-C did.
        """
        if self.finished is not None:
            return
        processor.remark(self.trainee.device, self.log, bfloat16=self.settings.precision == "bf16")
        with self.interruption:
            try:
                self._steps(progress)
            except Interrupted as interrupted:
                self._stop(interrupted)
            except NotFinite:
                self.optimizer.zero_grad()
                if all(self.group.gathered(checkpoints.finite(self.trainee.module))):
                    self._save_last()
                self._export_bests()
                raise
            finally:
                self.trainee.mode(False)
                self.diagnostics.close()
        self.stopped = self.stopped or "steps"

    def train_steps(self, count: int) -> None:
        """Make some steps and nothing else, for benchmarks."""
        for _ in range(count):
            self._train_step()

    def _stop(self, interrupted: Interrupted) -> None:
        """Leave a snapshot, and the program."""
        self.optimizer.zero_grad()
        self._save_last()
        left = f"a snapshot is in {self.places / LAST}, and the same command goes on from there"
        if not self.settings.keep_snapshots:
            left = "no snapshot was asked for (keep_snapshots), and the same command begins anew"
        self.log(f"{interrupted}: stopped after step {self.done} of {self.settings.steps}; {left}")
        if self.group.size > 1:
            # Whoever has started the processes ends all of them with the first that ends: together, then.
            self.group.wait()
            self.interruption.ignore()
        interrupted.end()

    def _steps(self, progress: Callable[[int, int], None] | None) -> None:
        settings = self.settings
        if self.pending:
            self._evaluate()
        while self.done < settings.steps and not self.stopped:
            self._train_step()
            if progress:
                progress(self.done, settings.steps)
            self.pending = (
                self._is_last() or self._is_due(settings.eval_steps) or self._is_due(settings.generate_steps)
            )
            if self.pending:
                self._evaluate()
            elif self._is_due(settings.save_steps):
                self._save_last()
        self._agreed(0)  # a signal during the last evaluation must not be lost

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.done % every == 0

    def _is_last(self) -> bool:
        return self.done == self.settings.steps or bool(self.stopped)

    def _train_step(self) -> None:
        settings, trainee = self.settings, self.trainee
        started = time.monotonic()
        trainee.mode(True)
        logged = self.done % settings.log_steps == 0
        adapting = trainee.adapting
        rate = self._set_rate()
        parts, labels, sums, norms = self.passes.run(self.done, self.optimizer.zero_grad, logged=logged)
        read = numbers({**sums, "": self._clip()})
        norm, totals = read.pop(""), summed(read, self.accelerator)
        loss = totals["total"] / labels
        # Before the weights change: afterwards there would be nothing good left to keep.
        if not all(abs(value) < float("inf") for value in (loss, norm)):
            self.optimizer.zero_grad()
            self.passes.fail(self.done, parts, {"loss": loss, "gradient norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        accuracy = totals["right"] / totals["firsts"] if totals["firsts"] else None
        adapting.stepped(accuracy, {name: int(n) for name, n in _under(totals, "skipped/").items()})
        # Where the text was read the norms are those of hidden states, not of a message.
        if adapting.wants_norms and accuracy is not None:
            whole = summed({kind: norms.get(kind, 0.0) for kind in trainee.step.kinds}, self.accelerator)
            adapting.measured({name: value / self.group.size for name, value in whole.items()})
        self.tokens += trainee.tokens(self.done)
        self.done += 1
        self.seconds += time.monotonic() - started
        if logged:
            self.diagnostics.write(
                {
                    "step": self.done,
                    "tokens": self.tokens,
                    "seconds": round(self.seconds, 3),
                    "learning_rate": rate,
                    "loss": loss,
                    "objectives": {name: value / labels for name, value in _under(totals, "term/").items()},
                    "gradient_norm": norm,
                    "objective_gradient_norms": norms,
                    "first_token_accuracy": accuracy,
                    "memory_gib": round(memory_gib(), 3),
                    "adapting": adapting.state(),
                }
            )
        self.stopped = self.judge.trained(self.done - 1, loss) or ""

    def _agreed(self, labels: int) -> float:
        """The step's labels in all processes; signals and overdue snapshots are noticed by all of them alike."""
        minutes = self.settings.save_minutes
        overdue = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        mine = {"labels": labels, "stop": self.interruption.number, "save": float(overdue)}
        totals = summed(mine, self.accelerator)
        if totals["stop"]:
            raise Interrupted(self.interruption.number or signal.SIGTERM)  # another process was told
        if totals["save"]:
            self._save_last()
        return totals["labels"]

    def _heed(self) -> None:
        if self.group.size == 1:
            self.interruption.heed()

    def _set_rate(self) -> float:
        settings = self.settings
        share = learning_rate_share(
            settings.schedule, self.done, settings.steps, settings.warmup_steps, settings.final_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        if self.one_by_one is not None:
            self.one_by_one.begin(seed_of(settings.seed, f"rounding/{self.done}"))
        return settings.learning_rate * share

    def _clip(self) -> Tensor:
        """Clip the gradient; returns its norm before, on the device."""
        if self.one_by_one is not None:
            return self.one_by_one.clip()
        norm: Tensor = torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        return full(norm)

    def _evaluate(self) -> None:
        started = time.monotonic()
        with self.reading():
            measured = self.held_out.measured()
            if not abs(measured.loss) < float("inf"):
                raise NotFinite(
                    f"evaluation after step {self.done}: found a loss of {measured.loss}, expected a finite number"
                )
            generated = self._generated()
            samples, prefixes = self.held_out.samples(), self.held_out.prefixes()
        results = HeldOutResults(measured, generated, self.text, samples, prefixes)
        stop = self.judge.evaluated(self.done, measured.loss, measured.accuracy, generated)
        if stop and self.done:
            self.stopped = self.stopped or stop
        line = {"step": self.done, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
        took = {"eval_seconds": round(time.monotonic() - started, 3)}
        self.diagnostics.write(line | results.line() | took)
        self.diagnostics.samples(self.done, samples)
        self.log(f"step {self.done} of {self.settings.steps}: {results}")
        self.pending = False
        # The best first: killed in between, the evaluation is repeated and writes the same best again.
        improved = self.judge.improved(self.done)
        for metric, name in snapshots.best_names(self.settings):
            if metric in improved:
                self._save(hidden(name), with_optimizer=False)
        if self.settings.save_steps is None or self._is_due(self.settings.save_steps) or self._is_last():
            self._save_last()

    def _generated(self) -> dict[str, float]:
        """Exact match and F1 of generated answers, where they are due; the text's are measured before training."""
        count, every = self.settings.generate_samples, self.settings.generate_steps
        if every is None or not (self._is_due(every) or self._is_last()):
            return {}
        if self.text is None:
            self.text = self.held_out.scores(count, text=True)
        return self.held_out.scores(count)

    def _save_last(self) -> None:
        if self.settings.keep_snapshots and self._saved != (self.done, self.pending):
            self._save(LAST, with_optimizer=True)
            self._saved = (self.done, self.pending)
        self._saved_at = time.monotonic()

    def _save(self, name: str, *, with_optimizer: bool) -> None:
        judge = {f.name: getattr(self.judge, f.name) for f in fields(self.judge) if f.name != "settings"}
        state = {
            "step": self.done,
            "evaluated": not self.pending,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "judge": judge,
            "rows": self.trainee.sha256(),
            "adapting": self.trainee.adapting.state(),
            "text": self.text,
        }
        optimizer = self.optimizer if with_optimizer else None
        keep = self.settings.keep_snapshots if with_optimizer else 1
        if self.group.leads or self.sharded:  # shares are gathered by all
            module, writes = self.trainee.module, self.group.leads
            checkpoints.save(self.places / name, module, optimizer, state, keep=keep, writes=writes)

    def _resume(self) -> None:
        # The first process sets aside what is damaged, before the others look.
        snapshot = self.group.leader_first(lambda: snapshots.usable(self.folder, self.settings, self.log))
        if snapshot is None:
            return
        state = snapshot.state
        snapshots.check_rows(state["rows"], self.trainee.sha256(), snapshot.folder)
        checkpoints.load(snapshot, self.trainee.module, self.optimizer)
        self.done, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.stopped, self.pending, self.text = state["stopped"], not state["evaluated"], state["text"]
        self._saved = (self.done, self.pending)
        self.trainee.adapting.restore(state["adapting"])
        self.judge = Judge(self.settings.stopping, **state["judge"])
        for metric, name in snapshots.best_names(self.settings):
            best = checkpoints.find(self.places / hidden(name))
            # One of a later evaluation than the snapshot's is what this training will find best there again.
            if best is not None and best.state["step"] > self.done:
                self.judge.bests[metric] = best.state["judge"]["bests"][metric]
        self.group.wait()  # nobody writes while another one still reads
        self.log(f"resumed at step {self.done} of {self.settings.steps}")

    def finish(self) -> Trained:
        """Turn the snapshots into the folders `final` and `best`; what was trained ends as the best one."""
        done = self.finished
        if done is None:
            self._export("final")
            self._export_bests()
            done = self._trained()
            if self.group.leads:
                snapshots.write_finished(self.places, done)
        self.group.wait()
        if self.group.leads:
            # Only now: a kill before it finds all that it needs to end here again.
            snapshots.remove_all(self.places, self.settings)
        if self.one_by_one is not None:
            self.one_by_one.close()
        self.trainee.settle(self.places / "best")
        return done

    def _export(self, name: str) -> None:
        """Write a checkpoint, and some logits that it gives."""
        if not (self.group.leads or self.sharded):
            return
        self.trainee.export(self.places / name)
        with self.reading():
            if self.group.leads:
                logit_probe.keep(self.trainee.probe, self.trainee.device, self.folder, name, self.log)

    def _export_bests(self) -> None:
        for _, name in reversed(
            list(snapshots.best_names(self.settings))
        ):  # `best` last: what was trained ends as it
            best = checkpoints.find(self.places / hidden(name)) if self.group.leads or self.sharded else None
            if best is not None:
                checkpoints.load(best, self.trainee.module)
                self._export(name)

    def _trained(self) -> Trained:
        judge = self.judge
        chosen = judge.bests[self.settings.best[0]]
        return Trained(
            steps=self.done,
            stopped=self.stopped,
            best_step=chosen["step"],
            best_loss=judge.bests["loss"]["value"],
            peak_accuracy=judge.peak_accuracy,
            peak_step=judge.peak_step,
            final_accuracy=judge.last_accuracy,
            train_rows_sha256=self.trainee.sha256(),
            tokens=self.tokens,
            seconds=self.seconds,
            skipped=dict(self.trainee.adapting.skipped),
            bests={metric: {"value": best["value"], "step": best["step"]} for metric, best in judge.bests.items()},
            text=self.text,
        )


def _under(values: Mapping[str, float], start: str) -> dict[str, float]:
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}

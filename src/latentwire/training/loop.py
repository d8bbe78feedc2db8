"""The training loop, on Accelerate: it resumes exactly, judges when to stop, and keeps its best checkpoints."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor

from latentwire.errors import UserError
from latentwire.evaluation.metrics import score_span
from latentwire.files import write_atomically
from latentwire.training import checkpoints, logit_probe, not_finite, optimizers
from latentwire.training.checkpoints import DONE, LAST, Snapshot
from latentwire.training.diagnostics import Diagnostics, memory_gib
from latentwire.training.interruption import Interrupted, Interruption
from latentwire.training.loop_config import Loop
from latentwire.training.not_finite import NotFinite
from latentwire.training.schedules import learning_rate_share
from latentwire.training.stopping import Best, Judge
from latentwire.training.trainee import Answered, Trained, Trainee
from latentwire.training.training_step import Losses

CHECKPOINTS = "checkpoints"


class Passed(NamedTuple):
    """The forward and backward passes of one step: its parts, the labels in all processes, sums over the parts,
    and the objectives' gradient norms."""

    parts: Sequence[Any]
    labels: float
    sums: dict[str, Tensor | int]
    norms: dict[str, float]


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
        # What is trained for a reader stands where the reader does, which need not be the first GPU.
        stay = [False] if self.accelerator.distributed_type == DistributedType.NO else None
        self.step = self.accelerator.prepare(trainee.step, device_placement=stay)
        weights = [p for p in trainee.module.parameters() if p.requires_grad]
        self.one_by_one = self._one_by_one(weights)
        self.optimizer: Any = self.one_by_one or optimizers.make(settings, weights)
        self.judge = Judge(settings.stopping)
        self.interruption = Interruption()
        self.done, self.tokens, self.seconds, self.stopped = 0, 0, 0.0, ""
        self.pending = True  # the evaluation after the steps that are done
        self.text: dict[str, float] | None = None
        self._saved_at = time.monotonic()
        self._saved: tuple[int, bool] | None = None
        self.finished = self._finished()
        if self.finished is None:
            self._resume()
            writes = self.accelerator.is_main_process
            self.diagnostics = Diagnostics(folder, self.done, evaluated=not self.pending, writes=writes)

    def _one_by_one(self, weights: list[torch.nn.Parameter]) -> optimizers.OneByOne | None:
        settings = self.settings
        if not settings.one_by_one:
            return None
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"weights: found bfloat16 or release_gradients in {self.accelerator.num_processes} processes, "
                "expected one: gradients that are used at once cannot be averaged over processes."
            )
        return optimizers.OneByOne(
            weights,
            lambda stand_ins: optimizers.make(settings, stand_ins),
            clip=settings.clip,
            release=settings.releases,
        )

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
        with self.interruption:
            try:
                self._steps(progress)
            except Interrupted as interrupted:
                self.optimizer.zero_grad()
                self._save_last()
                self.log(
                    f"{interrupted}: stopped after step {self.done} of {self.settings.steps}; a snapshot is in "
                    f"{self.places / LAST}, and the same command goes on from there"
                )
                interrupted.end()
            except NotFinite:
                self.optimizer.zero_grad()
                if checkpoints.finite(self.trainee.module):
                    self._save_last()
                self._export_bests()
                raise
            finally:
                self.trainee.mode(False)
                self.diagnostics.close()
        self.stopped = self.stopped or "steps"

    def _steps(self, progress: Callable[[int, int], None] | None) -> None:
        settings = self.settings
        if self.pending:
            self._evaluate()
        while self.done < settings.steps and not self.stopped:
            self._train_step()
            if progress:
                progress(self.done, settings.steps)
            last = self.done == settings.steps or bool(self.stopped)
            self.pending = last or self._is_due(settings.eval_steps) or self._is_due(settings.generate_steps)
            if self.pending:
                self._evaluate()
            elif self._is_due(settings.save_steps):
                self._save_last()
        self._agreed(0)  # a signal during the last evaluation must not be lost

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.done % every == 0

    def _train_step(self) -> None:
        settings, accelerator, trainee = self.settings, self.accelerator, self.trainee
        started = time.monotonic()
        torch.manual_seed(seed_of(settings.seed, f"step/{self.done}"))
        trainee.mode(True)
        logged = self.done % settings.log_steps == 0
        adapting = trainee.adapting
        rate = self._set_rate()
        while (passed := self._passes(logged)) is None:
            torch.manual_seed(seed_of(settings.seed, f"step/{self.done}"))
        parts, labels, sums, norms = passed
        totals, norm = _summed(accelerator, _numbers(sums)), self._clip()
        loss = totals["total"] / labels
        # Before the weights change: afterwards there would be nothing good left to keep.
        if not all(map(_is_finite, (loss, norm))):
            self._fail(parts, {"loss": loss, "gradient norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        accuracy = totals["right"] / totals["firsts"] if totals["firsts"] else None
        adapting.stepped(accuracy, {name: int(n) for name, n in _under(totals, "skipped/").items()})
        # Where the text was read the norms are those of hidden states, not of a message.
        if adapting.wants_norms and accuracy is not None:
            whole = _summed(accelerator, norms)
            adapting.measured({name: value / accelerator.num_processes for name, value in whole.items()})
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
        totals = _summed(self.accelerator, mine)
        if totals["stop"]:
            raise Interrupted(self.interruption.number or signal.SIGTERM)  # another process was told
        if totals["save"]:
            self._save_last()
        return totals["labels"]

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

    def _clip(self) -> float:
        """Clip the gradient; returns its norm before."""
        if self.one_by_one is not None:
            return float(self.one_by_one.clip())
        norm = self.accelerator.clip_grad_norm_(self.step.parameters(), self.settings.clip)
        return 0.0 if norm is None else float(norm)

    def _fail(self, parts: Sequence[Any], values: Mapping[str, float]) -> None:
        """Raise `NotFinite`, with the batch and the objective that the values come from."""
        self.optimizer.zero_grad()
        terms: list[str] = []
        indices: list[int] = []
        if self.one_by_one is None or not self.one_by_one.releases:
            torch.manual_seed(seed_of(self.settings.seed, f"step/{self.done}"))
            share, step = self.done / self.settings.steps, self.accelerator.unwrap_model(self.step)
            weights = [p for p in self.trainee.module.parameters() if p.requires_grad]
            with self.accelerator.autocast():
                indices, terms = not_finite.culprits(parts, lambda part: step(part, share), weights)
        bad = [parts[index] for index in indices] or parts
        examples = [name for part in bad for name in self.trainee.examples(part)]
        raise NotFinite(not_finite.sentence(self.done + 1, values, terms, examples))

    def _passes(self, logged: bool) -> Passed | None:
        """Forward and backward of all parts of a step; None if memory ran out and its parts are smaller now."""
        try:
            return self._pass_all(logged)
        except torch.OutOfMemoryError:
            # Processes that cut a step differently would wait for each other, and an update is not made twice.
            alone = self.accelerator.num_processes == 1 and not self.settings.releases
            if not alone or not self.trainee.split_further():
                raise
        # After the handler: the exception holds on to the tensors of the pass that failed.
        self.optimizer.zero_grad()
        if self.trainee.device.type == "cuda":
            torch.cuda.empty_cache()
        self.log(f"out of memory in step {self.done}: steps are split into twice as many parts")
        return None

    def _pass_all(self, logged: bool) -> Passed:
        accelerator, trainee, adapting = self.accelerator, self.trainee, self.trainee.adapting
        parts = trainee.parts(self.done, accelerator.process_index, accelerator.num_processes)
        labels = self._agreed(sum(map(trainee.labels, parts)))
        sums: dict[str, Tensor | int] = defaultdict(int)
        norms: dict[str, float] = {}
        for part in parts:
            self._heed()
            losses: Losses = self.step(part, self.done / self.settings.steps)
            adapts = adapting.wants_norms and losses.firsts > 0
            if not norms and (logged or adapts):
                norms = _gradient_norms(losses)
            if self.settings.releases and not bool(torch.isfinite(losses.total)):
                self._fail(parts, {"loss": float(losses.total) / labels})
            # Gradients are averaged over processes: the sum over all labels needs their number back.
            accelerator.backward(losses.total * accelerator.num_processes / labels)
            sums["total"] += losses.total.detach()
            sums["right"] += losses.first_right
            sums["firsts"] += losses.firsts
            for name, term in losses.terms.items():
                sums[f"term/{name}"] += term.detach()
            for name, count in losses.skipped.items():
                sums[f"skipped/{name}"] += count
        return Passed(parts, labels, sums, norms)

    def _evaluate(self) -> None:
        self.trainee.mode(False)
        started = time.monotonic()
        measured = self.trainee.step.measure(self._heeding(self.trainee.held_out()))
        if not _is_finite(measured.loss):
            raise NotFinite(
                f"evaluation after step {self.done}: found a loss of {measured.loss}, expected a finite number"
            )
        accuracy = measured.right / max(1, measured.firsts)
        generated = self._generated()
        stop = self.judge.evaluated(self.done, measured.loss, accuracy, generated)
        if stop and self.done:
            self.stopped = self.stopped or stop
        line = {
            "step": self.done,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "eval_loss": measured.loss,
            "eval_first_token_accuracy": accuracy,
            "eval_documents": measured.firsts,
            "eval_seconds": round(time.monotonic() - started, 3),
        }
        told = ""
        if generated and self.text is not None:
            line |= {f"eval_{name}": value for name, value in generated.items()}
            line |= {f"text_{name}": value for name, value in self.text.items()}
            told = f"; F1 {generated['f1']:.3f} (the text before training: {self.text['f1']:.3f})"
        self.diagnostics.write(line)
        self.diagnostics.samples(self.done, self.trainee.samples())
        self.log(
            f"step {self.done} of {self.settings.steps}: evaluation loss {measured.loss:.4f}, "
            f"first token right {accuracy:.3f}, n={measured.firsts}{told}"
        )
        self.pending = False
        # The best first: killed in between, the evaluation is repeated and writes the same best again.
        improved = self.judge.improved(self.done)
        for metric in self.settings.best:
            if metric in improved:
                self._save(_hidden(self._name(metric)), with_optimizer=False)
        if self.settings.save_steps is None or self._is_due(self.settings.save_steps) or self._is_last():
            self._save_last()

    def _is_last(self) -> bool:
        return self.done == self.settings.steps or bool(self.stopped)

    def _generated(self) -> dict[str, float]:
        """Exact match and F1 of generated answers, where they are due; the text's are measured before training."""
        count = self.settings.generate_samples
        if self.settings.generate_steps is None or not (
            self._is_due(self.settings.generate_steps) or self._is_last()
        ):
            return {}
        if self.text is None:
            self.text = _scores(self.trainee.answers(count, text=True))
        self._heed()
        return _scores(self.trainee.answers(count))

    def _heed(self) -> None:
        if self.accelerator.num_processes == 1:
            self.interruption.heed()

    def _heeding(self, parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            self._heed()
            yield part

    def _name(self, metric: str) -> str:
        """The checkpoint that is best by a metric: the first of the settings is `best` itself."""
        return "best" if metric == self.settings.best[0] else f"best_{metric}"

    def _save_last(self) -> None:
        if self._saved != (self.done, self.pending):
            self._save(LAST, with_optimizer=True)
            self._saved = (self.done, self.pending)
        self._saved_at = time.monotonic()

    def _save(self, name: str, *, with_optimizer: bool) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
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
        checkpoints.save(self.places / name, self.trainee.module, optimizer, state, keep=keep)

    def _resume(self) -> None:
        with self.accelerator.main_process_first():  # it sets aside what is damaged
            snapshot = usable(self.folder, self.settings, self.log)
        if snapshot is None:
            return
        state = snapshot.state
        self._check_rows(state["rows"], snapshot.folder)
        checkpoints.load(snapshot, self.trainee.module, self.optimizer)
        self.done, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.stopped, self.pending, self.text = state["stopped"], not state["evaluated"], state["text"]
        self._saved = (self.done, self.pending)
        self.trainee.adapting.restore(state["adapting"])
        self.judge = Judge(self.settings.stopping, **state["judge"])
        for metric in self.settings.best:
            best = checkpoints.find(self.places / _hidden(self._name(metric)))
            # One of a later evaluation than the snapshot's is what this training will find best there again.
            if best is not None and best.state["step"] > self.done:
                self.judge.bests[metric] = best.state["judge"]["bests"][metric]
        self.log(f"resumed at step {self.done} of {self.settings.steps}")

    def _check_rows(self, sha256: str, found: Path) -> None:
        if sha256 != self.trainee.sha256():
            raise UserError(f"resume: {found} was trained on other rows than these; start a fresh run.")

    def _finished(self) -> Trained | None:
        """What an earlier attempt came to, if it was finished."""
        try:
            done = Trained(**json.loads((self.places / DONE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        self._check_rows(done.train_rows_sha256, self.places / DONE)
        return done

    def finish(self) -> Trained:
        """Turn the snapshots into the folders `final` and `best`; what was trained ends as the best one."""
        done = self.finished
        if done is None:
            if self.accelerator.is_main_process:
                self._export("final")
                self._export_bests()
            done = self._trained()
            if self.accelerator.is_main_process:
                write_atomically(self.places / DONE, json.dumps(asdict(done), indent=1) + "\n")
        if self.accelerator.is_main_process:
            # Only now: a kill before it finds all that it needs to end here again.
            for name in (LAST, *(_hidden(self._name(metric)) for metric in self.settings.best)):
                checkpoints.remove(self.places / name)
        self.accelerator.wait_for_everyone()
        if self.one_by_one is not None:
            self.one_by_one.close()
        self.trainee.settle(self.places / "best")
        return done

    def _export_bests(self) -> None:
        if not self.accelerator.is_main_process:
            return
        for metric in reversed(self.settings.best):  # `best` last: what was trained ends as it
            name = self._name(metric)
            best = checkpoints.find(self.places / _hidden(name))
            if best is not None:
                checkpoints.load(best, self.trainee.module)
                self._export(name)

    def _export(self, name: str) -> None:
        """Write a checkpoint, and some logits that it gives."""
        self.trainee.export(self.places / name)
        self.trainee.mode(False)
        logit_probe.keep(self.trainee.probe, self.trainee.device, self.folder, name, self.log)

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


def usable(folder: Path, settings: Loop, log: Callable[[str], None]) -> Snapshot | None:
    """The snapshot that a training in this folder goes on from; damaged ones are set aside, which is logged."""

    def whole(snapshot: Snapshot) -> None:
        bests: dict[str, Best] = snapshot.state["judge"]["bests"]
        for number, metric in enumerate(settings.best):
            name = _hidden("best" if number == 0 else f"best_{metric}")
            if metric in bests and checkpoints.find(folder / CHECKPOINTS / name) is None:
                raise checkpoints.Damaged(f"found {name} beside it missing")

    return checkpoints.newest(folder / CHECKPOINTS / LAST, log, whole)


def _hidden(name: str) -> str:
    """The snapshot of a best checkpoint, until the end turns it into the folder of that name."""
    return f".{name}"


def _scores(answers: Sequence[Answered]) -> dict[str, float]:
    """Means of exact match and F1."""
    scores = [score_span(answer.prediction, answer.golds) for answer in answers]
    return {name: sum(score[name] for score in scores) / len(scores) for name in ("exact_match", "f1")}


def _gradient_norms(losses: Losses) -> dict[str, float]:
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


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _numbers(sums: Mapping[str, Tensor | int]) -> dict[str, float]:
    """What stands on devices as numbers; the first that is asked for waits for the step."""
    return {name: float(value) for name, value in sums.items()}


def _summed(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    """Each number's sum over all processes, which must have the same names."""
    if accelerator.num_processes == 1 or not values:
        return dict(values)
    numbers = [float(value) for value in values.values()]
    mine = torch.tensor(numbers, device=accelerator.device, dtype=torch.float64)
    total: Tensor = accelerator.reduce(mine, "sum")
    return dict(zip(values, total.tolist(), strict=True))


def _under(values: Mapping[str, float], start: str) -> dict[str, float]:
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def seed_of(seed: int, name: str) -> int:
    """Every random draw is a function of the study's seed and of what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")

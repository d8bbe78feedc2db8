"""Finetuning: a loop on Accelerate that audits itself first, resumes exactly and keeps its best checkpoint."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation.audit import audit
from latentwire.lm import attention, flex
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.training import checkpoints
from latentwire.training.adapters import Trainable
from latentwire.training.checks import check, kernel
from latentwire.training.config import Finetuning
from latentwire.training.diagnostics import Diagnostics, memory_gib
from latentwire.training.documents import Document, Source, document, sources
from latentwire.training.objectives import AnswerCrossEntropy
from latentwire.training.packing import Plan, Rows, collate, pack
from latentwire.training.row_audit import audit_rows, without_leaks
from latentwire.training.schedules import learning_rate_share
from latentwire.training.step import Losses, Step, read
from latentwire.training.stopping import Judge, Leak
from latentwire.wires import Wire

SAMPLE_TOKENS = 48
BEST_SO_FAR = ".best"
"""Snapshot of the best weights until the end turns it into the model folder `best`."""


@dataclass(frozen=True)
class Finetuned:
    """What a finetuning came to. stopped: why it ended. train_rows_sha256: of tokens, labels and order; equal for
    two stages that saw the same data. tokens: read in training, padding not counted."""

    steps: int
    stopped: str
    best_step: int
    best_loss: float
    train_rows_sha256: str
    tokens: int
    seconds: float


def finetune(
    lm: LM,
    settings: Finetuning,
    folder: Path,
    *,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> Finetuned:
    """Train `lm` in place and leave it at its best checkpoint.

    Args:
        folder: gets `diagnostics.jsonl`, `samples/` and `checkpoints/{last,best,final}`; a snapshot in
            `last` is continued from, exactly.
        progress: called with the steps done and all steps.

    Raises:
        UserError: the data cannot be used. Leak: the audit of model, wire or rows found one.
    """
    check(settings, lm)
    wire = wires.parse(settings.wire).bind(lm)
    choice = kernel(settings, lm)
    log(str(choice))
    before = attention.install(lm.model, choice.kernel)
    try:
        run = _Run(lm, wire, settings, folder, log)
        run.audit()
        run.train(progress)
        return run.finish()
    finally:
        attention.uninstall(lm.model, before)


class _Run:
    """The state of one finetuning, from its data to its last checkpoint."""

    def __init__(self, lm: LM, wire: Wire, settings: Finetuning, folder: Path, log: Callable[[str], None]) -> None:
        self.lm, self.wire, self.settings, self.folder, self.log = lm, wire, settings, folder, log
        held_out = list(sources(settings.data, "validation", settings.eval_samples, settings.eval_samples))
        self.held_out = held_out
        self.eval_rows = self._eval_batches(self._documents(held_out))
        self.plan = self._plan()
        torch.manual_seed(_seed(settings.seed, "adapters"))
        self.trainable = Trainable(lm, settings.lora)
        # One process may carry out stages of different precision; Accelerate keeps the first one's otherwise.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=lm.device.type == "cpu", mixed_precision="bf16" if settings.precision == "bf16" else "no"
        )
        self.objectives = [AnswerCrossEntropy()]
        optimizer = _optimizer(settings, [p for p in lm.model.parameters() if p.requires_grad])
        self.step, self.optimizer = self.accelerator.prepare(Step(lm, self.objectives), optimizer)
        self.judge = Judge(settings.stopping)
        self.done, self.tokens, self.seconds, self.stopped = 0, 0, 0.0, ""
        self.resumed = self._resume()
        self.diagnostics = Diagnostics(folder, self.done)

    def _documents(self, found: Sequence[Source]) -> list[Document]:
        made = [document(source, self.wire, self.lm) for source in found]
        longest = min(self.settings.row_tokens, self.lm.max_positions)
        kept = [each for each in made if len(each.ids) <= longest]
        if len(kept) < len(made):
            self.log(f"{len(made) - len(kept)} of {len(made)} documents exceed {longest} tokens: left out")
        if not kept:
            raise UserError(
                f"row_tokens: found {self.settings.row_tokens}, expected at least the "
                f"{min((len(each.ids) for each in made), default=0)} tokens of the shortest document."
            )
        return kept

    def _plan(self) -> Plan:
        settings = self.settings
        stream = sources(settings.data, "train", settings.train_samples, settings.eval_samples)
        needed = settings.steps * settings.rows * settings.row_tokens
        found: list[Source] = []
        budget = 0
        # The world's train split has no end: one epoch's worth is enough.
        for source in stream:
            found.append(source)
            if settings.train_samples is None:
                budget += len(document(source, self.wire, self.lm).ids)
                if budget >= needed:
                    break
        return Plan(self._documents(found), settings.row_tokens, settings.rows, settings.seed)

    def _eval_batches(self, documents: Sequence[Document]) -> list[Rows]:
        packed = pack([len(each.ids) for each in documents], self.settings.row_tokens)
        rows = [[documents[i] for i in row] for row in packed]
        count = self.settings.rows
        return [self._collate(rows[at : at + count], count) for at in range(0, len(rows), count)]

    def _collate(self, rows: Sequence[Sequence[Document]], count: int) -> Rows:
        shape = (0, 0)
        if attention.kernel(self.lm.model) == "flex":  # compiled for one shape
            shape = (count, -(-self.settings.row_tokens // flex.MULTIPLE) * flex.MULTIPLE)
        return collate(rows, getattr(self.wire, "layers", None), shape).to(self.lm.device)

    def audit(self) -> None:
        """Look at model, wire and rows before the first step."""
        # Dropout would look like a leak: it changes states that nobody exchanged a token for.
        self.lm.model.eval()
        problems = audit(self.lm, self.wire, kernels=[attention.kernel(self.lm.model)]).problems
        with self.accelerator.autocast():  # in the precision, and so with the kernel, of training
            problems += audit_rows(self.lm, self.eval_rows[0])
        if self.settings.force_leaky:
            self.log(f"training on a leak, as forced: {'; '.join(problems)}")
            problems = without_leaks(problems)
        if problems:
            raise Leak(f"the audit of {self.wire.label} failed: {'; '.join(problems)}")
        if not self.settings.force_leaky:
            self.log(f"audit of {self.wire.label} and its rows: nothing leaks")

    def train(self, progress: Callable[[int, int], None] | None) -> None:
        settings, lm = self.settings, self.lm
        if settings.activation_checkpointing:
            lm.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            if not self.resumed:
                self._evaluate()
            for rows in self.plan.steps(self.done, settings.steps):
                if self.stopped:
                    break
                self._train_step(rows)
                if progress:
                    progress(self.done, settings.steps)
                if self.done % settings.eval_steps == 0 or self.done == settings.steps or self.stopped:
                    self._evaluate()
        finally:
            if settings.activation_checkpointing:
                lm.model.gradient_checkpointing_disable()
            lm.model.eval()
        self.stopped = self.stopped or "steps"

    def _train_step(self, rows: list[list[Document]]) -> None:
        settings, accelerator = self.settings, self.accelerator
        started = time.monotonic()
        torch.manual_seed(_seed(settings.seed, f"step/{self.done}"))
        self.lm.model.train()
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        size = -(-len(mine) // settings.accumulation)
        parts = [self._collate(mine[at : at + size], size) for at in range(0, len(mine), size)]
        labels = _summed(accelerator, sum(int((part.labels[:, 1:] != -100).sum()) for part in parts))
        logged = self.done % settings.log_steps == 0
        sums: dict[str, float] = {each.name: 0.0 for each in self.objectives}
        norms: dict[str, float] = {}
        right = firsts = 0
        for part in parts:
            losses: Losses = self.step(part)
            if logged and not norms:
                norms = _gradient_norms(losses)
            # Gradients are averaged over processes: the sum over all labels needs their number back.
            accelerator.backward(losses.total * accelerator.num_processes / labels)
            for name, term in losses.terms.items():
                sums[name] += float(term.detach())
            right, firsts = right + losses.first_right, firsts + losses.firsts
        norm = accelerator.clip_grad_norm_(self.step.parameters(), settings.clip)
        share = learning_rate_share(
            settings.schedule, self.done, settings.steps, settings.warmup_steps, settings.final_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = _summed(accelerator, sum(each.weight * sums[each.name] for each in self.objectives)) / labels
        self.done += 1
        self.tokens += sum(len(each.ids) for row in rows for each in row)
        self.seconds += time.monotonic() - started
        if logged:
            self.diagnostics.write(
                {
                    "step": self.done,
                    "tokens": self.tokens,
                    "seconds": round(self.seconds, 3),
                    "learning_rate": settings.learning_rate * share,
                    "loss": loss,
                    "objectives": {name: _summed(accelerator, value) / labels for name, value in sums.items()},
                    "gradient_norm": None if norm is None else float(norm),
                    "objective_gradient_norms": norms,
                    "first_token_accuracy": right / max(1, firsts),
                    "memory_gib": round(memory_gib(), 3),
                }
            )
        self.stopped = self.judge.trained(self.done - 1, loss) or ""

    @torch.no_grad()
    def _evaluate(self) -> None:
        self.lm.model.eval()
        loss, labels, right, firsts = 0.0, 0, 0, 0
        for rows in self.eval_rows:
            forced, first = read(self.lm, rows)
            loss += float(self.objectives[0].loss(self.lm, forced))
            labels += len(forced.labels)
            right += int((self.lm.head(forced.hidden[first]).argmax(-1) == forced.labels[first]).sum())
            firsts += int(first.sum())
        mean = loss / labels
        stop = self.judge.evaluated(self.done, mean)
        if stop and self.done:
            self.stopped = self.stopped or stop
        self.diagnostics.write(
            {
                "step": self.done,
                "tokens": self.tokens,
                "seconds": round(self.seconds, 3),
                "eval_loss": mean,
                "eval_first_token_accuracy": right / max(1, firsts),
                "eval_documents": firsts,
            }
        )
        self.diagnostics.samples(self.done, self._samples())
        self.log(
            f"step {self.done} of {self.settings.steps}: evaluation loss {mean:.4f}, "
            f"first token right {right / max(1, firsts):.3f}, n={firsts}"
        )
        # The best first: killed in between, the evaluation is repeated and writes the same best again.
        if self.judge.best_step == self.done:
            self._save(BEST_SO_FAR, with_optimizer=False)
        self._save("last", with_optimizer=True)

    def _samples(self) -> list[dict[str, Any]]:
        examples = [each for each in self.held_out if isinstance(each, Example)][: self.settings.samples]
        if not examples:
            return []
        encoded = [self.lm.format.encode(each, self.lm) for each in examples]
        prefilled = self.lm.prefill(self.wire([prompt for prompt, _ in encoded], self.lm))
        texts = self.lm.generate(prefilled, Decoding(max_new_tokens=SAMPLE_TOKENS))
        return [
            {"id": each.id, "answer": (each.answers or (each.choices[each.gold],))[0], "prediction": text.text}
            for each, text in zip(examples, texts, strict=True)
        ]

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
            "rows": self.plan.sha256(),
        }
        optimizer = self.optimizer.optimizer if with_optimizer else None
        checkpoints.save(self.folder / "checkpoints" / name, self.lm.model, optimizer, state)

    def _resume(self) -> bool:
        found = checkpoints.find(self.folder / "checkpoints" / "last")
        if found is None:
            return False
        state = checkpoints.load(found, self.lm.model, self.optimizer.optimizer)
        if state["rows"] != self.plan.sha256():
            raise UserError(f"resume: {found} was trained on other rows than these; start a fresh run.")
        self.done, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.stopped = state["stopped"]
        self.judge = Judge(self.settings.stopping, **state["judge"])
        self.log(f"resumed at step {self.done} of {self.settings.steps}")
        return True

    def finish(self) -> Finetuned:
        """Turn the snapshots into model folders; the model ends as the best one."""
        places = self.folder / "checkpoints"
        if self.accelerator.is_main_process:
            if all(bool(torch.isfinite(weight).all()) for weight in checkpoints.trained(self.lm.model).values()):
                self.trainable.export(places / "final")
            else:
                self.log("the last weights are not finite numbers: there is no final checkpoint, only the best")
            if checkpoints.find(places / BEST_SO_FAR) is not None:
                checkpoints.load(places / BEST_SO_FAR, self.lm.model)
                self.trainable.export(places / "best")
                checkpoints.remove(places / BEST_SO_FAR)
        self.accelerator.wait_for_everyone()
        self.trainable.settle(places / "best")
        return Finetuned(
            steps=self.done,
            stopped=self.stopped,
            best_step=self.judge.best_step,
            best_loss=self.judge.best_loss,
            train_rows_sha256=self.plan.sha256(),
            tokens=self.tokens,
            seconds=self.seconds,
        )


def _optimizer(settings: Finetuning, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
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
    """Of each objective, with respect to the hidden states: through parameters they would break DDP."""
    norms = {}
    for name, term in losses.terms.items():
        (gradient,) = torch.autograd.grad(term / losses.labels, losses.hidden, retain_graph=True)
        norms[name] = float(gradient.float().norm())
    return norms


def _summed(accelerator: Accelerator, value: float) -> float:
    """The sum of a number over all processes."""
    if accelerator.num_processes == 1:
        return value
    total: Tensor = accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum")
    return float(total)


def _seed(seed: int, name: str) -> int:
    """Every random draw is a function of the study's seed and of what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")

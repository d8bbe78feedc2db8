"""Finetuning of a model over one wire, on packed documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation.audit import audit
from latentwire.lm.decoding import Decoding
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.masks import attention, flex
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.process_group import Group
from latentwire.training.data import Source
from latentwire.training.finetuning.checks import check, kernel
from latentwire.training.finetuning.documents import Document, document
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.finetuning.packing import Plan, Rows, collate, pack
from latentwire.training.finetuning.row_audit import audit_rows, without_leaks
from latentwire.training.finetuning.row_step import RowStep, labels_of
from latentwire.training.finetuning.trainable import Trainable
from latentwire.training.logit_probe import ASKED
from latentwire.training.loop import Training
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.schedules import seed_of
from latentwire.training.sharding import Sharded
from latentwire.training.sharing import Spare, shares
from latentwire.training.stopping import Leak
from latentwire.training.trainee import Answered, Trained
from latentwire.training.training_step import Step
from latentwire.wires import Wire

SAMPLE_TOKENS = 48
ANSWERS_AT_ONCE = 32


def finetune(
    lm: LM,
    settings: Finetuning,
    folder: Path,
    *,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train `lm` in place and leave it at its best checkpoint.

    Args:
        lm: The model, changed in place.
        settings: What to train on, how, and for how long.
        folder: Gets `diagnostics.jsonl`, `samples/` and `checkpoints/{best,final}`. A snapshot in
            `checkpoints/last`, left by an earlier attempt, is continued from exactly.
        log: Called with one sentence at a time.
        progress: Called with the steps done and the number of all steps.

    Raises:
        UserError: The data or an option cannot be used.
        Leak: The audit of model, wire or rows found one.
        NotFinite: A loss or gradient was no finite number.

    Example:
        >>> finetune(LM.load("embedded:heron"), Finetuning(steps=100), Path("run"))
    """
    check(settings, lm)
    if settings.weights == "bfloat16":
        _to_bfloat16(lm)
    wire = wires.parse(settings.wire).bind(lm)
    choice = kernel(settings, lm)
    log(str(choice))
    before = attention.install(lm.model, choice.kernel)
    try:
        trainee = _Finetuning(lm, wire, settings, log)
        training = Training(trainee, settings, folder, log)
        with training.reading():
            trainee.audit(training.accelerator.autocast())
        training.train(progress)
        return training.finish()
    finally:
        attention.uninstall(lm.model, before)


class _Finetuning:
    """A `Trainee`: a model on packed rows."""

    def __init__(self, lm: LM, wire: Wire, settings: Finetuning, log: Callable[[str], None]) -> None:
        self.lm, self.wire, self.settings, self.log = lm, wire, settings, log
        self.sources = list(settings.data.sources("validation", settings.eval_samples, settings.eval_samples))
        for remark in settings.data.remarks():
            log(remark)
        self.eval_rows = self._eval_batches(self._documents(self.sources))
        self.plan = self._plan()
        torch.manual_seed(seed_of(settings.seed, "adapters"))
        follows = any(objective.needs_teacher for objective in settings.objectives)
        self.trainable = Trainable(lm, settings.lora, keeps_teacher=follows)
        if self.trainable.teacher is not None:
            attention.install(self.trainable.teacher.model, attention.kernel(lm.model))
        self.adapting = Adapting(settings.objectives)
        self.step: Step = RowStep(lm, settings.objectives, self.adapting, self.trainable.teacher)
        self._stream: Iterator[list[list[Document]]] = iter(())
        self._step = -1
        self._passes = settings.accumulation
        self._current: list[list[Document]] = []

    @property
    def module(self) -> nn.Module:
        return self.lm.model

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def mode(self, training: bool) -> None:
        self.lm.model.train(training)
        if training == self.lm.model.is_gradient_checkpointing or not self.settings.activation_checkpointing:
            return
        if training:
            self.lm.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.lm.model.gradient_checkpointing_disable()

    def shard(self, group: Group) -> Sharded | None:
        return self.trainable.shard(self.step, group)

    def parts(self, step: int, process: int, processes: int) -> list[Rows | Spare]:
        rows = self._rows(step)
        answers = [length for row in rows for document in row for length in document.answers]
        mine = shares(rows, process, processes, self._passes)
        size = max(map(len, shares(rows, 0, processes, self._passes)))  # one shape for all

        def part(some: Sequence[list[Document]]) -> Rows:
            return replace(self._collate(some, size), answers=answers)

        return [part(some) if some else Spare(part(rows[:1])) for some in mine]

    def split_further(self) -> bool:
        if self._passes >= self.settings.rows:
            return False
        self._passes *= 2
        return True

    def labels(self, part: Rows) -> int:
        return labels_of(part)

    def tokens(self, step: int) -> int:
        return sum(len(each.ids) for row in self._rows(step) for each in row)

    def sha256(self) -> str:
        return self.plan.sha256()

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
        stream = settings.data.sources("train", settings.train_samples, settings.eval_samples)
        needed = settings.steps * settings.rows * settings.row_tokens
        sources: list[Source] = []
        budget = 0
        # The world's train split is endless: one epoch's worth is enough.
        for source in stream:
            sources.append(source)
            if settings.train_samples is None:
                budget += len(document(source, self.wire, self.lm).ids)
                if budget >= needed:
                    break
        return Plan(self._documents(sources), settings.row_tokens, settings.rows, settings.seed)

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

    def audit(self, precision: AbstractContextManager[None]) -> None:
        """Audit model and wire, and the rows in the precision and with the kernel of training."""
        # Dropout would look like a leak: it changes states although no token was changed.
        self.lm.model.eval()
        problems = audit(self.lm, self.wire, kernels=[attention.kernel(self.lm.model)], length=0).problems
        with precision:
            problems += audit_rows(self.lm, self.eval_rows[0])
        if self.settings.force_leaky:
            self.log(f"training on a leak, as forced: {'; '.join(problems)}")
            problems = without_leaks(problems)
        if problems:
            raise Leak(f"the audit of {self.wire.label} failed: {'; '.join(problems)}")
        if not self.settings.force_leaky:
            self.log(f"audit of {self.wire.label} and its rows: nothing leaks")

    def examples(self, part: Rows) -> list[str]:
        return list(part.names)

    def held_out(self) -> list[Rows]:
        return self.eval_rows

    @property
    def _asked(self) -> list[Example]:
        """The held-out examples that are questions: a conversation has no one answer."""
        return [source for source in self.sources if isinstance(source, Example)]

    def asked(self, count: int) -> list[list[Example]]:
        examples = self._asked[:count]
        if not examples:
            raise UserError(
                "generate_steps: found conversations to learn from, expected data with answers to match."
            )
        return [examples[at : at + ANSWERS_AT_ONCE] for at in range(0, len(examples), ANSWERS_AT_ONCE)]

    def answers(self, batch: Sequence[Example], *, text: bool = False) -> list[Answered]:
        wire = wires.parse("text").bind(self.lm) if text else self.wire
        golds = [list(example.answers) or [example.choices[example.gold]] for example in batch]
        said = self._say(batch, wire, Decoding(max_new_tokens=SAMPLE_TOKENS, stop=("\n",)))
        return [Answered(answer.strip(), gold) for answer, gold in zip(said, golds, strict=True)]

    def prefixes(self) -> dict[str, dict[str, float]]:
        return {}  # it reads the text itself

    def samples(self) -> list[dict[str, Any]]:
        examples = self._asked[: self.settings.samples]
        if not examples:
            return []
        texts = self._say(examples, self.wire, Decoding(max_new_tokens=SAMPLE_TOKENS))
        return [
            {"id": each.id, "answer": (each.answers or (each.choices[each.gold],))[0], "prediction": text}
            for each, text in zip(examples, texts, strict=True)
        ]

    def _say(self, examples: Sequence[Example], wire: Wire, how: Decoding) -> list[str]:
        prompts = [self.lm.format.encode(example, self.lm)[0] for example in examples]
        prefilled = self.lm.prefill(wire(prompts, self.lm))
        return [generated.text for generated in self.lm.generate(prefilled, how)]

    def export(self, folder: Path) -> None:
        dtype = self.settings.export_dtype
        self.trainable.export(folder, None if dtype is None else getattr(torch, dtype))

    def probe(self) -> dict[str, Tensor]:
        with evaluating(self.lm.model):
            prompts = [self.lm.format.encode(ASKED, self.lm)[0]]
            return {"": self.lm.prefill(self.wire(prompts, self.lm)).logits[0]}

    def settle(self, folder: Path) -> None:
        self.trainable.settle(folder)

    def _rows(self, step: int) -> list[list[Document]]:
        """A step's rows. Steps are asked for in order; the first is where an earlier run had stopped."""
        if step not in (self._step, self._step + 1) or self._step < 0:
            self._stream, self._step = self.plan.steps(step, self.settings.steps), step - 1
        if step == self._step + 1:
            self._step, self._current = step, next(self._stream)
        return self._current


def _to_bfloat16(lm: LM) -> None:
    """Keep the weights in bfloat16, but for those that the model always keeps in float32."""
    kept = [*(lm.model._keep_in_fp32_modules or ()), *(lm.model._keep_in_fp32_modules_strict or ())]
    for name, weight in lm.model.named_parameters():
        if not any(part in name for part in kept):
            weight.data = weight.data.to(torch.bfloat16)

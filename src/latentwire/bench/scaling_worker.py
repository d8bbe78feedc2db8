"""One of the processes that `latentwire bench scaling` starts: measures its share; the first one writes the rows.

Training steps are those of `training.loop.Training`, with all that it agrees on between processes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentwire import process_group
from latentwire.bench.decode_timing import tokenizer
from latentwire.bench.packed_documents import Regime
from latentwire.bench.setup import BenchRow, Setup
from latentwire.bench.wire_first import modules_of
from latentwire.bench.wire_train import RATIO, WireBatch, step_of
from latentwire.evaluation.arms import parse
from latentwire.evaluation.evaluate import evaluate
from latentwire.files import write_atomically
from latentwire.lm.masks.kernel_choice import choose
from latentwire.lm.model import LM
from latentwire.process_group import Group
from latentwire.tasks import resolve
from latentwire.training.finetuning.packing import collate, pack
from latentwire.training.finetuning.row_step import RowStep, labels_of
from latentwire.training.loop import Training
from latentwire.training.loop_config import Loop, Stopping
from latentwire.training.objectives import AnswerCrossEntropy
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.sharding import Sharded
from latentwire.training.training_step import Step

ROWS = {"cuda": Regime(16, 1024, 32, 8), "cpu": Regime(2, 256, 8, 2)}
CONTEXTS = {"cuda": WireBatch(32, 144), "cpu": WireBatch(4, 128)}
EXAMPLES = {"cuda": 512, "cpu": 8}
"""A process's rows, contexts and examples; few examples are few batches, which cannot be shared evenly."""
RECOMPUTED = {"14b": Regime(4, 1024, 32, 8)}
"""Shapes whose states fill most of a GPU: they read fewer rows and run layers again in the backward pass."""
ENDLESS = 10**6


def main(shape: str, dtype: str, parts: str, file: str) -> None:
    """Measure the parts in this process and the others."""
    with process_group.joined() as group:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        setup = Setup(torch.device(device), shape, precision=getattr(torch, dtype))
        measured = [MEASURED[part](setup, group) for part in parts.split(",")]
        if group.leads:
            write_atomically(Path(file), json.dumps([asdict(row) for row in measured]))


def _weights(setup: Setup, group: Group) -> BenchRow:
    """Steps of a finetuning of all weights, which are sharded where there are several processes."""
    regime = RECOMPUTED.get(setup.shape, ROWS[setup.device.type])
    model = Setup(setup.device, setup.shape, precision=torch.float32).model()
    documents = regime.documents(model.config.get_text_config().vocab_size, packed=True)
    rows = [[documents[i] for i in row] for row in pack([len(d.ids) for d in documents], regime.width)]
    part = collate(rows, shape=(regime.rows, regime.width)).to(setup.device)
    lm = LM(
        model, tokenizer(), name=setup.shape, attention_kernel=choose(model, "auto", dtype=torch.bfloat16).kernel
    )
    model.requires_grad_(True)
    if setup.shape in RECOMPUTED:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    step = RowStep(lm, [AnswerCrossEntropy()])
    trainee = _Repeating(step, model, part, labels_of(part), lm if group.size > 1 else None)
    return _trained(setup, group, "weights", trainee, sum(len(document.ids) for document in documents))


def _wire(setup: Setup, group: Group) -> BenchRow:
    """Steps of a wire's training before a frozen reader."""
    lm = LM(setup.model().eval().requires_grad_(False), tokenizer(), name=setup.shape)
    modules, batch = modules_of(lm, RATIO).train(), CONTEXTS[setup.device.type]
    part = batch.part(lm)
    trainee = _Repeating(step_of(lm, modules), modules, part, part.labels, None)
    return _trained(setup, group, "wire", trainee, batch.contexts * batch.tokens)


def _evaluation(setup: Setup, group: Group) -> BenchRow:
    """Questions of the made-up world: half of them answered in words, half by choices."""
    lm = LM(setup.model().eval().requires_grad_(False), tokenizer(), name=setup.shape)
    tasks = [task for name in ("one_hop", "choices/home") for task in resolve([name], None)]
    limit = EXAMPLES[setup.device.type] * group.size // 2

    def run() -> None:
        evaluate(lm, tasks, [parse("text")], limit=limit, group=group)
        group.wait()

    timing = setup.timed(run, repeats=2, warm=1)
    return _row(setup, group, "evaluation", timing.seconds, 2 * limit, timing.peak_gib)


MEASURED: dict[str, Callable[[Setup, Group], BenchRow]] = {
    "weights": _weights,
    "wire": _wire,
    "evaluation": _evaluation,
}


def _trained(setup: Setup, group: Group, who: str, trainee: Any, tokens: int) -> BenchRow:
    settings = Loop(
        steps=ENDLESS,
        eval_steps=ENDLESS,
        log_steps=ENDLESS,
        learning_rate=1e-6,
        precision="bf16" if setup.device.type == "cuda" else "fp32",
        stopping=Stopping(collapse_ratio=None),
    )
    with tempfile.TemporaryDirectory() as folder:
        training = Training(trainee, settings, Path(folder), lambda line: None)
        try:
            timing = setup.timed(lambda: training.train_steps(1), repeats=8, warm=3)
        except torch.OutOfMemoryError:
            if group.size > 1:  # others may have enough, and wait: they have to end too
                raise
            return BenchRow(who, {"seconds": None, "per_second": None}, _at(setup, group, who), "out of memory")
    return _row(setup, group, who, timing.seconds, group.size * tokens, timing.peak_gib)


def _row(setup: Setup, group: Group, who: str, seconds: float, amount: int, peak: float) -> BenchRow:
    """A row about the slowest process."""
    slowest, peak = (max(values) for values in zip(*group.gathered((seconds, peak)), strict=True))
    figures = {
        "seconds": slowest,
        "per_second": amount / slowest,
        "peak_gib": peak if setup.device.type == "cuda" else None,
    }
    return BenchRow(who, figures, _at(setup, group, who))


def _at(setup: Setup, group: Group, who: str) -> dict[str, str | int | float]:
    what = {"weights": "tokens", "wire": "context tokens", "evaluation": "examples"}[who]
    return {"shape": setup.shape, "processes": group.size, "of": what}


class _Repeating:
    """A `Trainee` that gets the same part in every step, in every process."""

    def __init__(self, step: Step, module: nn.Module, part: Any, labels: int, sharded: LM | None) -> None:
        self.step, self.module, self._part, self._labels, self._lm = step, module, part, labels, sharded
        self.adapting: Adapting = step.adapting
        self.device = next(module.parameters()).device

    def shard(self, group: Group) -> Sharded | None:
        return None if self._lm is None else Sharded(self._lm, self.step, group)

    def mode(self, training: bool) -> None:
        self.module.train(training)

    def parts(self, step: int, process: int, processes: int) -> list[Any]:
        return [self._part]

    def labels(self, part: Any) -> int:
        return self._labels

    def tokens(self, step: int) -> int:
        return 0

    def sha256(self) -> str:
        return ""

    def examples(self, part: Any) -> list[str]:
        return []

    def split_further(self) -> bool:
        return False

    def held_out(self) -> Iterator[Any]:
        return iter(())


if __name__ == "__main__":
    main(*sys.argv[1:])

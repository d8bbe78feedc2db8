"""A training step of a latent wire and its forward passes without gradients, beside the arithmetic they need."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from latentwire.bench.setup import BenchRow, Setup
from latentwire.bench.train_costs import failure
from latentwire.bench.wire_first import FIRST_ID, RANK, context_of, modules_of
from latentwire.lm.model import LM
from latentwire.lm.operation_counts import Counts, causal
from latentwire.training.objectives import AnswerCrossEntropy, Distill
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.wire.part import Part, collate
from latentwire.training.wire.passage import Passage
from latentwire.training.wire.step_needs import StepNeeds, StepShape
from latentwire.training.wire.teacher import Teacher
from latentwire.training.wire.wire_step import WireStep
from latentwire.wires.latent.modules import LatentModules

RATIO = 4


@dataclass(frozen=True)
class WireBatch:
    """How many contexts a step has, of how many tokens, with how many questions; lengths in tokens."""

    contexts: int
    tokens: int
    questions: int = 8
    question: int = 16
    answer: int = 4

    def part(self, lm: LM) -> Part:
        """The batch as the training step takes it."""
        context = context_of(lm, self.tokens)
        asked = list(range(FIRST_ID, FIRST_ID + self.question + self.answer))
        pair = (asked[: self.question], asked[self.question :])
        passages = [
            Passage(str(at), context, {lm.name: lm.format.before(context, lm)}, {lm.name: [pair] * self.questions})
            for at in range(self.contexts)
        ]
        chosen = [range(self.questions)] * self.contexts
        return collate(passages, chosen, {lm.name: lm.device}, [str(at) for at in range(self.contexts)])


# Short contexts as the template's passages have them, and long ones; as many tokens in both.
BATCHES = {"cuda": (WireBatch(32, 144), WireBatch(4, 1024)), "cpu": (WireBatch(4, 128),)}
MORE = {"cuda": (WireBatch(8, 1024), WireBatch(2, 4096)), "cpu": (WireBatch(2, 512),)}


def needs_of(lm: LM, batch: WireBatch) -> StepNeeds:
    """What a batch needs, counted from the model's shape."""
    each = batch.question + batch.answer
    shape = StepShape(
        contexts=batch.contexts,
        tokens=batch.tokens,
        asked=batch.questions * each,
        answers=batch.questions * batch.answer,
        latents=1 + -(-(batch.tokens - 1) // RATIO),
        # Logits of the student and their gradient for each of two objectives, of the teacher for one.
        terms=2,
        behind=batch.questions * causal(each),
    )
    return StepNeeds.counted(Counts.of(lm.model), Counts.of(lm.model, RANK), shape)


def step_of(lm: LM, modules: LatentModules) -> WireStep:
    """A training step with the template's objectives and a frozen reader."""
    objectives = (AnswerCrossEntropy(weight=0.5), Distill())
    return WireStep(modules, {lm.name: lm}, {lm.name: Teacher(lm, print)}, objectives, Adapting(objectives))


def measure(setup: Setup, lm: LM, how: str = "") -> Iterator[BenchRow]:
    """A training step and its parts at each batch. how: appended to the names of the rows."""
    kind = setup.device.type if setup.device.type in BATCHES else "cpu"
    modules = modules_of(lm, RATIO).train()
    step = step_of(lm, modules)
    weights = [each for each in modules.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    for batch in (*BATCHES[kind], *(MORE[kind] if setup.sweep else ())):
        part, needs = batch.part(lm), needs_of(lm, batch)

        def train(part: Part = part) -> None:
            losses = step(part)
            (losses.total / losses.labels).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def teach(part: Part = part) -> None:
            part.questions[lm.name].forced(part.text[lm.name], lm)

        def encode(part: Part = part) -> None:
            modules(part.contexts)

        yield _floor(setup, batch, needs)
        yield _row(setup, f"teacher alone{how}", torch.no_grad()(teach), batch, needs.teacher)
        yield _row(setup, f"encoder alone, forward{how}", torch.no_grad()(encode), batch, needs.encode)
        yield _row(setup, f"training step{how}", train, batch, needs.step)


def _floor(setup: Setup, batch: WireBatch, needs: StepNeeds) -> BenchRow:
    seconds = needs.step / setup.flops
    shares = {
        "teacher": needs.teacher,
        "encoder": needs.encode,
        "its backward pass": needs.encode_back,
        "student, both ways": needs.student,
    }
    note = ", ".join(f"{name} {each / needs.step:.0%}" for name, each in shares.items())
    return BenchRow("floor: training step", _figures(setup, batch, seconds, needs.step), _at(batch), note)


def _row(setup: Setup, who: str, run: Callable[[], None], batch: WireBatch, operations: float) -> BenchRow:
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()

    def cast() -> None:
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.dtype == torch.bfloat16):
            run()

    try:
        timing = setup.timed(cast, repeats=5, warm=2)
    except RuntimeError as error:
        return BenchRow(who, {"seconds": None}, _at(batch), failure(error))
    figures = _figures(setup, batch, timing.seconds, operations)
    return BenchRow(
        who, {**figures, "peak_gib": timing.peak_gib if setup.device.type == "cuda" else None}, _at(batch)
    )


def _figures(setup: Setup, batch: WireBatch, seconds: float, operations: float) -> dict[str, float | None]:
    floor = operations / setup.flops
    return {
        "seconds": seconds,
        "floor_seconds": floor,
        "times_floor": seconds / floor,
        "context_tokens_per_second": batch.contexts * batch.tokens / seconds,
    }


def _at(batch: WireBatch) -> dict[str, str | int | float]:
    return {
        "context": f"{batch.contexts}×{batch.tokens}",
        "question": f"{batch.questions}×({batch.question}+{batch.answer})",
    }

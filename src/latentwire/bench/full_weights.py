"""`latentwire bench weights`: whole optimizer steps of a finetuning of all weights, by what they are kept in.

Each configuration is what a study writes: `weights`, `optimizer`, `release_gradients`, `activation_checkpointing`.
All read the same packed rows through the module and the optimizers that a finetuning uses. On an accelerator
`peak_gib` holds weights, gradients, optimizer state and activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from latentwire.bench.packed_documents import Regime
from latentwire.bench.setup import BenchRow, Setup
from latentwire.bench.train_costs import failure, no_tokenizer, release_memory
from latentwire.errors import UserError
from latentwire.lm.masks import attention
from latentwire.lm.masks.kernel_choice import choose
from latentwire.lm.model import LM
from latentwire.training import optimizers
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.finetuning.packing import collate, pack
from latentwire.training.finetuning.row_step import RowStep
from latentwire.training.objectives import AnswerCrossEntropy

PARTS = ("default", "small")
"""Float32 weights with AdamW; what takes less memory."""
REGIMES = {"cuda": Regime(8, 1024, 32, 8), "cpu": Regime(2, 256, 8, 2)}
SMALL = {"weights": "bfloat16", "precision": "bf16", "release_gradients": True}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32, adamw": ("default", {"precision": "bf16"}),
    "float32, adamw, checkpointing": ("default", {"precision": "bf16", "activation_checkpointing": True}),
    "bfloat16, adafactor, released": ("small", {**SMALL, "optimizer": "adafactor"}),
    "bfloat16, adafactor, released, checkpointing": (
        "small",
        {**SMALL, "optimizer": "adafactor", "activation_checkpointing": True},
    ),
    "bfloat16, adamw8bit, released, checkpointing": (
        "small",
        {**SMALL, "optimizer": "adamw8bit", "activation_checkpointing": True},
    ),
}


def measure(setup: Setup) -> Iterator[BenchRow]:
    """Seconds a step, steps and tokens a second, and peak memory of each configuration."""
    for name, (part, options) in CONFIGURATIONS.items():
        if setup.wants(part):
            yield _row(setup, name, Finetuning(steps=1, **options))
            release_memory()


def _row(setup: Setup, name: str, settings: Finetuning) -> BenchRow:
    regime = REGIMES["cuda" if setup.device.type == "cuda" else "cpu"]
    at: dict[str, str | int | float] = {"shape": setup.shape, "batch": f"{regime.rows}×{regime.width}"}
    try:
        run, tokens = _training(setup, settings, regime)
        timing = setup.timed(run, repeats=5, warm=2)
    except (UserError, RuntimeError) as error:
        return BenchRow(name, {}, at, str(error) if isinstance(error, UserError) else failure(error))
    figures: dict[str, float | None] = {
        "seconds": timing.seconds,
        "steps_per_second": 1 / timing.seconds,
        "tokens_per_second": tokens / timing.seconds,
        "peak_gib": timing.peak_gib if setup.device.type == "cuda" else None,
    }
    return BenchRow(name, figures, at)


def _training(setup: Setup, settings: Finetuning, regime: Regime) -> tuple[Callable[[], None], int]:
    """One optimizer step to call, and how many tokens it reads."""
    if settings.optimizer == "adamw8bit":
        optimizers.check_8bit(setup.device.type)
    model = replace(setup, precision=getattr(torch, settings.weights)).model()
    documents = regime.documents(model.config.get_text_config().vocab_size, packed=True)
    rows = [[documents[i] for i in row] for row in pack([len(d.ids) for d in documents], regime.width)]
    batch = collate(rows, shape=(regime.rows, regime.width)).to(setup.device)
    kernel = choose(model, "auto", dtype=torch.bfloat16).kernel
    attention.install(model, "sdpa")
    lm = LM(model, no_tokenizer(), name=setup.shape, attention_kernel=kernel)
    step = RowStep(lm, [AnswerCrossEntropy()])
    weights = list(model.requires_grad_(True).parameters())
    model.train()
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    make = optimizers.make
    one_by_one = (
        optimizers.OneByOne(
            weights, lambda some: make(settings, some), clip=settings.clip, release=settings.releases
        )
        if settings.one_by_one
        else None
    )
    optimizer: Any = one_by_one or make(settings, weights)

    def run() -> None:
        if one_by_one is not None:
            one_by_one.begin(0)
        with torch.autocast(setup.device.type, torch.bfloat16):
            losses = step(batch)
        (losses.total / losses.labels).backward()
        if one_by_one is not None:
            one_by_one.clip()
        else:
            torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        optimizer.step()
        optimizer.zero_grad()

    return run, sum(len(document.ids) for document in documents)

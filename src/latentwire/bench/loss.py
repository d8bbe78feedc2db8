"""`latentwire bench loss`: losses over a vocabulary, plain and in chunks, forward and backward.

The peak is what the loss takes above what was there before it (hidden states, heads), its gradients included. The
errors are those of the gradients of hidden states and head against the plain loss in float32, on fewer tokens.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from latentwire.bench.setup import GIB, SHAPES, BenchRow, Setup
from latentwire.training import losses
from latentwire.training.losses import Head

TOKENS = {"cuda": 16_384, "cpu": 2_048}
SWEEP_TOKENS = {"cuda": (2_048, 8_192, 32_768), "cpu": (512, 4_096)}
CHECKED = 4_096
"""Tokens of the comparison of gradients: two chunks at a vocabulary of 131,072."""
TOP = 64
SCALE = 0.02
"""Of the head's random weights, as models are initialized."""

Loss = Callable[["LossBatch"], Tensor]


@dataclass(frozen=True, eq=False)
class LossBatch:
    """hidden `(N, D)`, head `(V, D)`, labels `(N,)`; the same of a teacher, and its top tokens."""

    hidden: Tensor
    head: Tensor
    labels: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor

    def part(self, tokens: int, dtype: torch.dtype) -> LossBatch:
        """The first tokens, copied into a dtype, with gradients wanted as in this one."""

        def copied(each: Tensor) -> Tensor:
            return each.detach().to(dtype, copy=True).requires_grad_(each.requires_grad)

        return LossBatch(
            copied(self.hidden[:tokens]),
            copied(self.head),
            self.labels[:tokens],
            copied(self.teacher_hidden[:tokens]),
            copied(self.teacher_head),
        )


PARTS: tuple[str, ...] = ()


def measure(setup: Setup) -> Iterator[BenchRow]:
    """Cross-entropy and KL against a teacher at the shape's vocabulary; with `sweep` of more batches."""
    kind = setup.device.type if setup.device.type in TOKENS else "cpu"
    for tokens in (TOKENS[kind], *(SWEEP_TOKENS[kind] if setup.wants("sweep") else ())):
        batch = _batch(setup, tokens)
        checked = min(CHECKED, tokens // 2)
        for plain, others in _pairs().items():
            exact = _gradients(others[plain], batch.part(checked, torch.float32))
            base: dict[str, float | None] = {}
            for name, loss in others.items():
                row = _row(setup, name, loss, batch, exact, checked, base)
                base = base or row.figures
                yield row


def _batch(setup: Setup, tokens: int) -> LossBatch:
    config = SHAPES[setup.shape].config
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    draw = torch.Generator(setup.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=setup.device, dtype=setup.dtype)

    return LossBatch(
        normal(tokens, width).requires_grad_(),
        normal(vocabulary, width).mul_(SCALE).requires_grad_(),
        torch.randint(0, vocabulary, (tokens,), generator=draw, device=setup.device),
        normal(tokens, width),
        normal(vocabulary, width).mul_(SCALE),
    )


def _pairs() -> dict[str, dict[str, Loss]]:
    """Losses that compute the same number, by the name of the plain one."""
    entropies: dict[str, Loss] = {"cross-entropy, plain": _plain, "cross-entropy, chunked": _chunked}
    if hasattr(functional, "linear_cross_entropy"):
        entropies["cross-entropy, torch's own"] = _torchs
    return {
        "cross-entropy, plain": entropies,
        "KL, plain": {"KL, plain": _plain_kl, "KL, chunked": _chunked_kl, "KL of the top 64, chunked": _top},
    }


def _plain(batch: LossBatch) -> Tensor:
    return functional.cross_entropy((batch.hidden @ batch.head.T).float(), batch.labels, reduction="sum")


def _chunked(batch: LossBatch) -> Tensor:
    return losses.cross_entropy(batch.hidden, Head(batch.head), batch.labels)


def _torchs(batch: LossBatch) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return functional.linear_cross_entropy(
        batch.hidden, batch.head, batch.labels, reduction="sum", options=options
    )


def _plain_kl(batch: LossBatch) -> Tensor:
    with torch.no_grad():
        theirs = (batch.teacher_hidden @ batch.teacher_head.T).float().log_softmax(-1)
    ours = (batch.hidden @ batch.head.T).float().log_softmax(-1)
    return functional.kl_div(ours, theirs, log_target=True, reduction="sum")


def _chunked_kl(batch: LossBatch) -> Tensor:
    return losses.kl(batch.hidden, Head(batch.head), batch.teacher_hidden, Head(batch.teacher_head))


def _top(batch: LossBatch) -> Tensor:
    # Stored logits of a teacher: what they are does not matter here, as long as they are log-probabilities.
    ids = torch.arange(TOP, device=batch.labels.device).repeat(len(batch.labels), 1)
    logprobs = torch.full(ids.shape, 0.01, device=ids.device).log()
    return losses.top_kl(batch.hidden, Head(batch.head), ids, logprobs)


def _gradients(loss: Loss, batch: LossBatch) -> list[Tensor] | None:
    try:
        loss(batch).backward()
    except torch.OutOfMemoryError:
        return None
    assert batch.hidden.grad is not None
    assert batch.head.grad is not None
    return [batch.hidden.grad, batch.head.grad]


def _row(
    setup: Setup,
    name: str,
    loss: Loss,
    batch: LossBatch,
    exact: list[Tensor] | None,
    checked: int,
    base: dict[str, float | None],
) -> BenchRow:
    at: dict[str, str | int | float] = {"tokens": len(batch.labels), "vocabulary": len(batch.head)}
    same = loss is not _top  # the divergence of the top tokens is another number than that of all
    found = _gradients(loss, batch.part(checked, setup.dtype)) if exact is not None and same else None
    errors = [None, None] if found is None or exact is None else _errors(found, exact)
    del found
    before = _allocated()

    def run() -> None:
        batch.hidden.grad = batch.head.grad = None
        loss(batch).backward()

    try:
        timing = setup.timed(run, repeats=3, warm=2)
    except torch.OutOfMemoryError:
        return BenchRow(name, {}, at, "out of memory")
    finally:
        batch.hidden.grad = batch.head.grad = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    peak = timing.peak_gib - before if setup.device.type == "cuda" else None
    figures: dict[str, float | None] = {
        "seconds": timing.seconds,
        "peak_gib": peak,
        "hidden_error": errors[0],
        "head_error": errors[1],
    }
    ratios = {f"{key}_over_plain": _ratio(figures[key], base.get(key)) for key in ("seconds", "peak_gib")}
    return BenchRow(name, {**figures, **ratios} if base else figures, at)


def _errors(found: list[Tensor], exact: list[Tensor]) -> list[float | None]:
    return [
        float((ours.float() - wanted).norm() / wanted.norm()) for ours, wanted in zip(found, exact, strict=True)
    ]


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _allocated() -> float:
    return torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else 0.0

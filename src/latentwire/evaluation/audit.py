"""Does this model, with this attention, leak or see ahead?

Four questions, each answered by running the model: what does one real sample cost under each mask, is the first
supervised token the first token of the answer, who sees whom, and does prefill with decoding equal one full pass.
A fifth needs no real data at all: labels drawn at random cannot be predicted, so a loss below their
entropy has read them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.evaluation.perturbation import Padding, Sight, look
from latentwire.lm.masks import attention
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompts import Example
from latentwire.wires import Wire, parse

SAMPLE = Example(
    id="audit/sample",
    group="audit",
    context="Mira has 12 apples. She buys 7 more apples and gives 5 of them to Tomas.",
    question="How many apples does Mira have?",
    answers=("12 + 7 = 19. 19 - 5 = 14. #### 14",),
)
SHORT = Example(
    id="audit/short",
    group="audit",
    context="Mira lives in Tarn.",
    question="Where?",
    answers=("In Tarn, she says.",),
)
KERNELS = ("sdpa", "eager", "flex")
PADDINGS: tuple[Padding, ...] = ("none", "right", "left")


@dataclass
class Audit:
    """What an audit of one wire found. `problems` is empty if nothing leaks and everything agrees.

    losses: nats a token of one sample's answer by mask. decode_gap: largest difference of logits between
    prefill with decoding and one full pass, relative to the largest logit; None for a wire that leaks, whose full
    pass differs from decoding by construction. random_loss and entropy: nats a token on labels drawn
    uniformly; an honest loss is not below the entropy by more than `margin`.
    skipped: kernels that cannot run here, with the reason.
    """

    wire: str
    losses: dict[str, float] = field(default_factory=dict)
    first_tokens: list[tuple[str, str]] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    decode_gap: float | None = None
    random_loss: float = 0.0
    entropy: float = 0.0
    margin: float = 0.0
    problems: list[str] = field(default_factory=list)


def audit(lm: LM, wire: Wire, examples: Sequence[Example] = (), *, kernels: Sequence[str] = KERNELS) -> Audit:
    """Audit a model as it reads over one wire.

    Args:
        examples: whose answers' first tokens are looked at beside the built-in sample's.
        kernels: attention implementations to try; those that this model or machine cannot run are skipped.

    Raises:
        UserError: the wire does not deliver tokens, whose exchange could be watched.
    """
    bound = wire.bind(lm)
    found = Audit(wire=bound.label)
    found.losses = sample_losses(lm, bound)
    _first_tokens(lm, [SAMPLE, *examples], found)
    _sights(lm, bound, kernels, found)
    _decoding(lm, bound, found)
    _random_labels(lm, bound, found)
    return found


@torch.no_grad()
def sample_losses(lm: LM, wire: Wire) -> dict[str, float]:
    """Nats a token of the built-in sample's answer: causal, prompt bidirectional, everything bidirectional.

    The third is no reading of the prompt: every answer token stands in its own input.
    """
    prompt, (answer,) = lm.format.encode(SAMPLE, lm)
    named = {"causal": parse("text"), "prefix": parse("text,mask=prefix"), "fully bidirectional": parse("leaky")}
    if wire.label not in {known.label for known in named.values()}:
        named[wire.label] = wire
    return {name: float(_losses(lm, each([prompt], lm), [answer]).mean()) for name, each in named.items()}


@torch.no_grad()
def _losses(lm: LM, prefix: Prefix, answers: Sequence[Sequence[int]]) -> Tensor:
    """Nats of every answer token, `(tokens,)`."""
    forced = lm.forced(prefix, pad_rows(answers, -100).to(lm.device))
    labelled = forced.labels != -100
    logits = lm.head(forced.hidden[labelled]).float()
    return torch.nn.functional.cross_entropy(logits, forced.labels[labelled], reduction="none")


def _first_tokens(lm: LM, examples: Sequence[Example], found: Audit) -> None:
    for example in examples:
        _, answers = lm.format.encode(example, lm)
        for text, ids in zip(example.choices or example.answers[:1], answers, strict=True):
            first = lm.decode(ids[:1])
            found.first_tokens.append((first, text))
            # Prompt and answer tokens together must be the text: none lost between them, none twice.
            read = lm.format.tokens(example.context, example.question, lm).ids + ids
            whole = lm.format.whole(example.context, example.question, text, lm)
            if lm.decode(read) != lm.decode(whole):
                found.problems.append(
                    f"the first supervised token of {example.id} is {first!r}, not the first of {text!r}"
                )


def _sights(lm: LM, wire: Wire, kernels: Sequence[str], found: Audit) -> None:
    prompt, (answer,) = lm.format.encode(SHORT, lm)
    prefix = wire([prompt], lm)
    if prefix.ids is None or prefix.memory is not None:
        raise UserError(f"wire: {wire.label} delivers no plain tokens, so exchanging one cannot be watched.")
    before = attention.install(lm.model)
    own = attention.kernel(lm.model)
    try:
        for kernel in kernels:
            try:
                attention.install(lm.model, kernel)
                sights = look(lm, prefix, answer, kernel, PADDINGS)
            except (UserError, ImportError, RuntimeError) as error:
                found.skipped[kernel] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                continue
            found.sights += sights
    finally:
        attention.uninstall(lm.model, before)
    for sight in found.sights:
        where = f"{sight.kernel}, padding {sight.padding}"
        if sight.own_label:
            found.problems.append(f"LEAK ({where}): a scored position sees its own label")
        elif sight.forbidden:
            found.problems.append(f"LEAK ({where}): {sight.forbidden} states see tokens that the mask hides")
        if sight.unpadded > _tolerance(lm):
            found.problems.append(f"padding changes states by {sight.unpadded:.1e} ({where})")
    if own in found.skipped:
        found.problems.append(f"the model's own attention, {own}, could not be watched: {found.skipped[own]}")
    if not found.sights:
        found.problems.append(f"no attention kernel could be watched: {found.skipped}")


def _tolerance(lm: LM) -> float:
    return 1e-4 if lm.model.dtype == torch.float32 else 5e-2


@torch.no_grad()
def _decoding(lm: LM, wire: Wire, found: Audit) -> None:
    prompt, (answer,) = lm.format.encode(SAMPLE, lm)
    prefix = wire([prompt], lm)
    if prefix.leaky:
        return
    full = lm.head(lm.forced(prefix, torch.tensor([answer], device=lm.device)).hidden)[0]
    state = lm.prefill(prefix)
    steps = [state.logits[0]]
    for token in answer[:-1]:
        state = lm.append(state, torch.tensor([[token]], device=lm.device))
        steps.append(state.logits[0])
    found.decode_gap = float((torch.stack(steps) - full).abs().max() / full.abs().max())
    if not found.decode_gap <= _tolerance(lm):
        found.problems.append(f"prefill with decoding differs from one full pass by {found.decode_gap:.1e}")


@torch.no_grad()
def _random_labels(lm: LM, wire: Wire, found: Audit, rows: int = 16, length: int = 16) -> None:
    """Uniform random prompts and answers: the expected loss of an honest reader is at least their entropy."""
    prompt, _ = lm.format.encode(SHORT, lm)
    shape = wire([prompt], lm)
    vocabulary = lm.head(lm.embed(torch.zeros(1, dtype=torch.long, device=lm.device))).shape[-1]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (rows, length + shape.columns.width), generator=draw)
    answers, prompts = tokens[:, :length], tokens[:, length:].to(lm.device)
    several = shape.select(torch.zeros(rows, dtype=torch.long, device=lm.device))
    random_prefix = Prefix(ids=prompts, columns=several.columns, layers=several.layers, leaky=several.leaky)
    losses = _losses(lm, random_prefix, answers.tolist())
    found.entropy, found.random_loss = math.log(vocabulary), float(losses.mean())
    found.margin = 5 * float(losses.std()) / math.sqrt(losses.numel())
    if found.random_loss < found.entropy - found.margin:
        found.problems.append(
            f"LEAK: {found.random_loss:.2f} nats a token on random labels, whose entropy is {found.entropy:.2f}"
        )

"""Does this model, with this attention, leak or see ahead?

Every question is answered by running the model, in its own prompt format and on the user's data where there is
some:

- Who sees whom: in every layer, under every attention kernel and padding, on a short prompt and on one that is
  longer than every sliding window (`perturbation`).
- Does it read as the model's own forward does, beyond the windows too, and does prefill with decoding equal one
  full pass (`length_checks`)? Does a packed row give every document what it has alone (`row_checks`)?
- What stands in the tokens: BOS, the first supervised token, and whether the tokenizer survives saving
  (`prompt_checks`).
- Labels drawn at random cannot be predicted, so a loss below their entropy has read them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.evaluation import length_checks, prompt_checks, row_checks
from latentwire.evaluation.perturbation import LayerSight, Padding, Sight, look, look_at_layers, windows
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import LayerRange
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
ANSWER = 12
"""Tokens of an answer that follow a long prompt."""


@dataclass
class Audit:
    """What an audit of one wire found. `problems` is empty if nothing leaks and everything agrees.

    Attributes:
        losses: nats a token of one sample's answer, by mask.
        first_tokens: the first supervised token of each answer, and the answer.
        sights: who saw whom at the final states, by kernel, padding and prompt.
        layers: who saw whom in each layer.
        skipped: kernels that cannot run here, with the reason.
        decode_gap: largest difference of logits between prefill with decoding and one full pass, relative to the
            largest logit; None for a wire that leaks, whose full pass differs from decoding by construction.
        own_gap: the same between causal reading here and the model's own forward.
        packed_gap, blocks_gap: largest relative difference between a document in a packed row and alone, as
            training reads rows and through `latentwire.blocks`.
        long_tokens: prompt and answer of the longest row that was looked at.
        random_loss, entropy: nats a token on labels drawn uniformly; an honest loss is not below the entropy by
            more than `margin`.
        warnings: what is allowed and may still not be meant.
        not_looked_at: what was left out, with the reason.
    """

    wire: str
    losses: dict[str, float] = field(default_factory=dict)
    first_tokens: list[tuple[str, str]] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    layers: list[LayerSight] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    decode_gap: float | None = None
    own_gap: float | None = None
    packed_gap: float | None = None
    blocks_gap: float | None = None
    long_tokens: int = 0
    random_loss: float = 0.0
    entropy: float = 0.0
    margin: float = 0.0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_looked_at: list[str] = field(default_factory=list)


def audit(
    lm: LM,
    wire: Wire,
    examples: Sequence[Example] = (),
    *,
    kernels: Sequence[str] | None = None,
    length: int | None = None,
) -> Audit:
    """Audit a model as it reads over one wire.

    Args:
        examples: the user's data, beside the built-in samples.
        kernels: attention implementations to try; those that this model or machine cannot run are skipped.
        length: tokens of the longest prompt that is read; None takes two sliding windows, at least 256 and at most
            2,048 tokens; 0 leaves out long prompts and the tokenizer's copies, for a look at every start of a
            training.

    Raises:
        UserError: the wire does not deliver plain tokens, so that exchanging one could not be watched, or a length
            that the model does not have.
    """
    bound = wire.bind(lm)
    report = Audit(wire=bound.label)
    report.losses = sample_losses(lm, bound)
    samples = [SAMPLE, *examples]
    report.problems += prompt_checks.first_token_problems(lm, samples, report.first_tokens)
    report.problems += prompt_checks.bos_problems(lm, samples)
    report.warnings += prompt_checks.format_warnings(lm, bound)
    _sights(lm, bound, KERNELS if kernels is None else kernels, report)
    _decoding(lm, bound, report)
    _rows(lm, bound, report)
    _random_labels(lm, bound, report)
    if length == 0:
        report.not_looked_at.append("prompts beyond a few dozen tokens, and copies of the tokenizer")
    else:
        report.problems += prompt_checks.tokenizer_problems(lm, samples, report.not_looked_at)
        _long(lm, bound, list(examples) or [SAMPLE, SHORT], length, report)
    return report


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


def _delivered(lm: LM, wire: Wire, example: Example) -> tuple[Prefix, list[int]]:
    """What the wire delivers of an example, and the tokens of its first or right answer."""
    prompt, answers = lm.format.encode(example.requests()[0], lm)
    prefix = wire([prompt], lm)
    if prefix.ids is None or prefix.memory is not None:
        raise UserError(f"wire: {wire.label} delivers no plain tokens, so exchanging one cannot be watched.")
    return prefix, answers[max(example.gold, 0) if len(answers) > 1 else 0]


def _sights(lm: LM, wire: Wire, kernels: Sequence[str], report: Audit) -> None:
    prefix, answer = _delivered(lm, wire, SHORT)
    every = range(prefix.columns.width + len(answer))
    before = attention.install(lm.model)
    own = attention.kernel(lm.model)
    try:
        for kernel in kernels:
            try:
                attention.install(lm.model, kernel)
                sights = look(lm, prefix, answer, kernel, PADDINGS)
                layers = [look_at_layers(lm, prefix, answer, kernel, padding, every) for padding in PADDINGS]
            except (UserError, ImportError, RuntimeError) as error:
                report.skipped[kernel] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                continue
            _judge(lm, sights, [sight for of_padding in layers for sight in of_padding], report)
    finally:
        attention.uninstall(lm.model, before)
    if own in report.skipped:
        report.problems.append(f"the model's own attention, {own}, could not be watched: {report.skipped[own]}")
    if not report.sights:
        report.problems.append(f"no attention kernel could be watched: {report.skipped}")
    elif not report.layers:
        report.not_looked_at.append("single layers, which this model keeps in a way that is not known here")


def _judge(lm: LM, sights: Sequence[Sight], layers: Sequence[LayerSight], report: Audit) -> None:
    """Add what was seen to the audit, and a problem for each thing that should not have been."""
    report.sights += sights
    report.layers += layers
    for sight in sights:
        where = f"{sight.kernel}, padding {sight.padding}, {sight.tokens} tokens"
        if sight.own_label:
            report.problems.append(f"LEAK ({where}): a scored position sees its own label")
        elif sight.forbidden:
            report.problems.append(f"LEAK ({where}): {sight.forbidden} states see tokens that the mask hides")
        if sight.unpadded > _tolerance(lm):
            report.problems.append(f"padding changes states by {sight.unpadded:.1e} ({where})")
    for kernel, padding, tokens in dict.fromkeys((s.kernel, s.padding, s.tokens) for s in layers):
        mine = [s for s in layers if (s.kernel, s.padding, s.tokens) == (kernel, padding, tokens)]
        where = f"{kernel}, padding {padding}, {tokens} tokens"
        for name, verb in (("seen", "LEAK ({}): {} see {} pairs that the mask hides"),
                           ("missed", "({}): {} miss {} pairs that the mask shows")):  # fmt: skip
            wrong = [s for s in mine if getattr(s, name)]
            if wrong:
                state, position = getattr(wrong[0], f"first_{name}")
                which = f"{_named([s.layer for s in wrong])} of {len(mine)} layers"
                count = sum(getattr(s, name) for s in wrong)
                text = verb.format(where, which, count)
                report.problems.append(f"{text}, such as token {state} and token {position}")


def _named(layers: Sequence[int]) -> str:
    shown = ", ".join(map(str, layers[:6]))
    return f"layer {shown}" if len(layers) == 1 else f"layers {shown}{', ...' if len(layers) > 6 else ''}"


def _tolerance(lm: LM) -> float:
    return 1e-4 if lm.model.dtype == torch.float32 else 5e-2


def _decoding(lm: LM, wire: Wire, report: Audit) -> None:
    prefix, answer = _delivered(lm, wire, SAMPLE)
    if prefix.leaky:
        report.not_looked_at.append("decoding, whose answer cannot join the prompt's block as this wire's does")
        return
    report.decode_gap = length_checks.decode_gap(lm, prefix, answer)
    if not report.decode_gap <= _tolerance(lm):
        report.problems.append(f"prefill with decoding differs from one full pass by {report.decode_gap:.1e}")


def _rows(lm: LM, wire: Wire, report: Audit) -> None:
    """Packed rows of three documents with padding, as training reads them and through `latentwire.blocks`."""
    documents: list[row_checks.Document] = []
    layers: LayerRange | None = None
    for example in (SHORT, SAMPLE, SHORT):
        prefix, answer = _delivered(lm, wire, example)
        assert prefix.ids is not None
        if prefix.leaky:
            return
        layers = prefix.layers
        blocks = [*prefix.columns.blocks[0].tolist(), *[-1] * len(answer)]
        documents.append(([*prefix.ids[0].tolist(), *answer], blocks))
    report.packed_gap = row_checks.packing_gap(lm, documents, layers)
    if not report.packed_gap <= _tolerance(lm):
        report.problems.append(
            f"packed rows: a document beside others has other states than alone, by {report.packed_gap:.1e}"
        )
    if lm.prefix_tuning is not None:
        report.not_looked_at.append("latentwire.blocks, which knows no learned prefix")
        return
    report.blocks_gap = row_checks.blocks_gap(lm, documents, layers)
    if not report.blocks_gap <= _tolerance(lm):
        report.problems.append(
            "latentwire.blocks: a document in a packed row with padding has other logits than alone, by "
            f"{report.blocks_gap:.1e}"
        )


def _long(lm: LM, wire: Wire, examples: Sequence[Example], length: int | None, report: Audit) -> None:
    """The same questions on a prompt longer than every window, under the model's own kernel."""
    most = lm.max_positions - ANSWER - 2
    if length is not None and not 8 <= length <= most:
        raise UserError(
            f"length: found {length:,}, expected 8 to {most:,}, which is what {lm.name} was built for."
        )
    target = length_checks.default_length(lm, ANSWER) if length is None else length
    prefix, answer = _delivered(lm, wire, length_checks.long_example(lm, examples, target))
    answer, width = answer[:ANSWER], prefix.columns.width
    if width + len(answer) > lm.max_positions:
        report.not_looked_at.append(f"long prompts, since {wire.label} delivers {width:,} tokens at the least")
        return
    report.long_tokens = width + len(answer)
    own, positions = attention.kernel(lm.model), length_checks.spread(width, len(answer))
    paddings: tuple[Padding, ...] = ("none", "left")
    sights = look(lm, prefix, answer, own, paddings, positions)
    layers = [look_at_layers(lm, prefix, answer, own, padding, positions) for padding in paddings]
    _judge(lm, sights, [sight for of_padding in layers for sight in of_padding], report)
    assert prefix.ids is not None
    if lm.prefix_tuning is None:
        report.own_gap = length_checks.own_forward_gap(lm, [*prefix.ids[0].tolist(), *answer])
        if not report.own_gap <= _tolerance(lm):
            report.problems.append(
                f"causal logits differ from those of the model's own forward by {report.own_gap:.1e} "
                f"({own}, {report.long_tokens} tokens)"
            )
    else:
        report.not_looked_at.append("the model's own forward, which knows no learned prefix")
    if not prefix.leaky:
        gap = length_checks.decode_gap(lm, prefix, answer)
        report.decode_gap = max(gap, report.decode_gap or 0.0)
        if not gap <= _tolerance(lm):
            report.problems.append(
                f"prefill with decoding differs from one full pass by {gap:.1e} after {width} tokens"
            )
    widest = max((window for window in windows(lm) if window is not None), default=0)
    if widest >= width:
        report.not_looked_at.append(f"prompts longer than the sliding window of {widest:,} tokens; pass a length")
    if report.long_tokens < lm.max_positions:
        report.not_looked_at.append(
            f"rows of more than {report.long_tokens:,} tokens; the model takes {lm.max_positions:,}"
        )


@torch.no_grad()
def _random_labels(lm: LM, wire: Wire, report: Audit, rows: int = 16, length: int = 16) -> None:
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
    report.entropy, report.random_loss = math.log(vocabulary), float(losses.mean())
    report.margin = 5 * float(losses.std()) / math.sqrt(losses.numel())
    if report.random_loss < report.entropy - report.margin:
        report.problems.append(
            f"LEAK: {report.random_loss:.2f} nats a token on random labels, whose entropy is {report.entropy:.2f}"
        )

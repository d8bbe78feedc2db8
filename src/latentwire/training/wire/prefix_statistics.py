"""What a reader gets of latents, in a few numbers: is it as large as text, and does it differ where it should?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latentwire.lm.masks.reading import Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.scoring.questions import Shared

Kind = tuple[list[Tensor], Tensor]
"""One `(B, H, M, D)` for each layer, and which columns are no padding, `(B, M)`; soft tokens: one of each."""


@torch.no_grad()
def statistics(delivered: Shared, text: Shared, lm: LM) -> dict[str, float]:
    """Size and variety of a delivered prefix, beside the text that it stands for.

    For soft tokens (`soft`), keys (`keys`, not rotated) and values (`values`), means over layers:

    - `rms`: the root mean square of their numbers.
    - `gain`: that, divided by the same of the text's own embeddings, keys or values. Far from 1 it is unlike
      anything that the reader has been trained to read.
    - `spread`: how far the latents of a context lie from their mean, as a share of `rms`. Near 0 all are alike.
    - `contrast`: how far the means of contexts lie from each other, as a share of `rms`. Near 0 the prefix says
      the same of every context.

    Args:
        delivered: latents of B contexts as an adapter delivers them, without text.
        text: the same contexts as the reader's tokens, `content` `(B, T)`.
        lm: the reader as it was before training.

    Returns:
        The numbers by name, such as `values_gain`.

    Example:
        >>> statistics(modules.deliver(modules(contexts), "heron"), Shared.of_tokens(ids, heron.device), heron)
        {'keys_rms': 1.94, 'keys_gain': 0.97, ...}
    """
    own = dict(_kinds(_read(text, lm, memory=delivered.memory is not None)))
    numbers: dict[str, float] = {}
    for name, (layers, valid) in _kinds(delivered):
        found = torch.tensor([_numbers(layer, valid) for layer in layers]).mean(0).tolist()
        rms = torch.tensor([_numbers(layer, own[name][1])[0] for layer in own[name][0]]).mean()
        numbers |= {f"{name}_rms": found[0], f"{name}_gain": found[0] / float(rms.clamp_min(1e-12))}
        numbers |= {f"{name}_spread": found[1], f"{name}_contrast": found[2]}
    return {name: round(value, 4) for name, value in numbers.items()}


def _read(text: Shared, lm: LM, *, memory: bool) -> Shared:
    """The text as embeddings and, where asked for, as keys and values."""
    assert text.content is not None
    assert text.columns is not None
    read: Memory | None = lm.memorize(Prefix(ids=text.content, columns=text.columns))[1] if memory else None
    return Shared(text.end, read, lm.embed(text.content), text.columns)


def _kinds(shared: Shared) -> Iterator[tuple[str, Kind]]:
    if shared.content is not None and shared.content.is_floating_point():
        assert shared.columns is not None
        yield "soft", ([shared.content[:, None]], shared.columns.valid)
    if shared.memory is not None:
        yield "keys", (list(shared.memory.keys), shared.memory.columns.valid)
        yield "values", (list(shared.memory.values), shared.memory.columns.valid)


def _numbers(vectors: Tensor, valid: Tensor) -> tuple[float, float, float]:
    """`rms`, `spread` and `contrast` of `(B, H, M, D)` where `valid` `(B, M)`."""
    there = valid[:, None, :, None].to(vectors.device)
    kept = torch.where(there, vectors.float(), 0)
    mean = kept.sum(2) / there.sum(2).clamp_min(1)
    many = there.sum() * vectors.shape[1] * vectors.shape[3]
    rms = (kept.square().sum() / many).sqrt().clamp_min(1e-12)
    within = (torch.where(there, kept - mean[:, :, None], 0).square().sum() / many).sqrt()
    between = (mean - mean.mean(0)).square().mean().sqrt()
    return float(rms), float(within / rms), float(between / rms)

"""Who really sees whom: exchange one token at a time and look which states change.

A mask is a promise; this measures what the model does. Every token of one prompt with its answer is exchanged in
turn, and a state that changes has seen it. What may change follows from the promise: the one-layer visibility,
multiplied along the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentwire.lm.masks.reading import Columns, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import CAUSAL

Padding = Literal["none", "right", "left"]
PADS = 3
"""Padding columns that the padded variants carry."""


@dataclass(frozen=True)
class Sight:
    """What one kernel did with one mask and one padding, as shares and flags.

    forbidden: states that changed although the mask hides the token. reads_ahead: share of the pairs (earlier,
    later prompt token) in which the earlier state changed. own_label: whether the state that predicts an answer
    token changed with that token. unpadded: largest difference to the states without padding, relative
    to the largest state.
    """

    kernel: str
    padding: Padding
    forbidden: int
    reads_ahead: float
    own_label: bool
    unpadded: float


@torch.no_grad()
def look(lm: LM, prefix: Prefix, answer: list[int], kernel: str, paddings: tuple[Padding, ...]) -> list[Sight]:
    """Measure one token prefix `(1, P)` followed by `answer`, under the kernel that the model has installed."""
    assert prefix.ids is not None
    prompt, width = prefix.columns.width, prefix.columns.width + len(answer)
    tokens = torch.cat([prefix.ids[0], torch.tensor(answer, device=lm.device)])
    vocabulary = lm.head(lm.embed(tokens[:1])).shape[-1]
    exchanged = tokens.repeat(width + 1, 1)
    at = torch.arange(width)
    exchanged[at + 1, at] = (tokens + 1) % vocabulary
    block = torch.full_like(prefix.columns.blocks, CAUSAL)[:, :1].expand(1, len(answer))
    if prefix.leaky:
        block = prefix.columns.blocks[:, :1].expand(1, len(answer))
    blocks = torch.cat([prefix.columns.blocks, block], 1)[0]
    allowed = _allowed(lm, prefix, blocks)
    sights: list[Sight] = []
    plain: Tensor | None = None
    for padding in paddings:
        states = _states(lm, prefix, exchanged, blocks, padding)
        plain = states[0] if plain is None else plain
        changed = (states[1:] != states[0]).any(-1).T  # [state, exchanged token]
        ahead = torch.ones(prompt, prompt, device=changed.device).triu(1).bool()
        label = torch.arange(prompt, width, device=changed.device)
        sights.append(
            Sight(
                kernel=kernel,
                padding=padding,
                forbidden=int((changed & ~allowed).sum()),
                reads_ahead=float(changed[:prompt, :prompt][ahead].float().mean()) if prompt > 1 else 0.0,
                own_label=bool(changed[label - 1, label].any()),
                unpadded=float((states[0] - plain).abs().max() / plain.abs().max()),
            )
        )
    return sights


def _states(lm: LM, prefix: Prefix, rows: Tensor, blocks: Tensor, padding: Padding) -> Tensor:
    """Final hidden states `(rows, width, D)`, padding columns cut out again."""
    count, width = rows.shape
    before = PADS if padding == "left" else 0
    after = PADS if padding == "right" else 0
    total = before + width + after
    index = torch.arange(total, device=rows.device) - before
    valid = (index >= 0) & (index < width)
    inside = index.clamp(0, width - 1)
    columns = Columns.of(
        valid.expand(count, -1),
        index.clamp_min(0).expand(count, -1),
        torch.where(valid, blocks[inside], CAUSAL).expand(count, -1),
    )
    hidden = lm.run(rows[:, inside], columns, Reading(columns, prefix.layers))
    return hidden[:, before : before + width].float()


def _allowed(lm: LM, prefix: Prefix, blocks: Tensor) -> Tensor:
    """`[state, token]`, true where some path through the layers leads from token to state."""
    config = lm.model.config.get_text_config()
    width = len(blocks)
    at = torch.arange(width, device=blocks.device)
    causal = at[None, :] <= at[:, None]
    same = (blocks[:, None] == blocks[None, :]) & (blocks[:, None] != CAUSAL)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    always = window is not None and getattr(config, "layer_types", None) is None
    reach = torch.eye(width, device=blocks.device)
    for layer, kind in enumerate(kinds):
        see = causal | same if prefix.layers is None or layer in prefix.layers else causal
        if window is not None and (always or kind == "sliding_attention"):
            see = see & ((at[:, None] - at[None, :]).abs() < window)
        reach = ((see.float() @ reach) > 0).float()
    return reach > 0

"""Measures who really sees whom: change one token, or one layer's input, and look which states change.

A mask is a promise; this measures what the model does. Two experiments:

- `look` exchanges each token of a short prompt with its answer in turn. A final state that changes has seen it,
  through any path along the layers.
- `look_at_layers` adds noise to the input of one layer at one position, in every layer of the same pass. A state
  that changes after that layer has seen that position in that layer. So a single layer with another mask is
  found, and a mask that shows too little as well as one that shows too much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latentwire.lm import row_parts
from latentwire.lm.masks.reading import Columns, LayerRange, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import CAUSAL

Padding = Literal["none", "right", "left"]
PADS = 3
"""Padding columns that the padded variants carry."""
NOISE = 4.0
"""Size of the noise at a layer's input, in standard deviations of the state that it is added to."""


@dataclass(frozen=True)
class Sight:
    """What one kernel did with one mask and one padding, measured at the final states.

    Attributes:
        forbidden: how many states changed although the mask hides the exchanged token.
        reads_ahead: share of the pairs (earlier, later prompt token) in which the earlier state changed.
        own_label: whether a state that predicts an answer token changed with that token.
        unpadded: largest difference to the states without padding, relative to the largest state.
        tokens: length of prompt and answer.
    """

    kernel: str
    padding: Padding
    forbidden: int
    reads_ahead: float
    own_label: bool
    unpadded: float
    tokens: int = 0


@dataclass(frozen=True)
class LayerSight:
    """What one layer did with its mask, under one kernel and padding.

    Attributes:
        tokens: length of prompt and answer.
        pairs: how many pairs of a state and a position were looked at.
        seen: how many of them the layer sees although its mask hides them, with the first such pair (state,
        position).
        missed: how many it does not see although its mask shows them, with the first such pair; see `_missed`.
    """

    kernel: str
    padding: Padding
    layer: int
    tokens: int
    pairs: int
    seen: int
    first_seen: tuple[int, int] | None
    missed: int
    first_missed: tuple[int, int] | None


@dataclass(frozen=True)
class _Sequence:
    """Prompt and answer as one row: token ids and block ids `(W,)`; `prompt` of them are the prompt."""

    tokens: Tensor
    blocks: Tensor
    prompt: int
    layers: LayerRange | None

    @classmethod
    def of(cls, lm: LM, prefix: Prefix, answer: list[int]) -> _Sequence:
        assert prefix.ids is not None
        tokens = torch.cat([prefix.ids[0], torch.tensor(answer, device=lm.device)])
        block = (
            torch.full_like(prefix.columns.blocks[0, :1], CAUSAL)
            if not prefix.leaky
            else prefix.columns.blocks[0, :1]
        )
        blocks = torch.cat([prefix.columns.blocks[0], block.expand(len(answer))])
        return cls(tokens, blocks, prefix.columns.width, prefix.layers)


@torch.no_grad()
def look(
    lm: LM,
    prefix: Prefix,
    answer: list[int],
    kernel: str,
    paddings: Sequence[Padding],
    positions: Sequence[int] | None = None,
) -> list[Sight]:
    """Measure one token prefix `(1, P)` followed by `answer`, under the kernel that the model has installed.

    Args:
        positions: of the tokens to exchange; None for all.
    """
    row = _Sequence.of(lm, prefix, answer)
    prompt, width = row.prompt, len(row.tokens)
    vocabulary = lm.head(lm.embed(row.tokens[:1])).shape[-1]
    at = torch.tensor(sorted({p for p in positions if p < width}) if positions else range(width), device=lm.device)
    exchanged = row.tokens.repeat(len(at) + 1, 1)
    exchanged[torch.arange(len(at)) + 1, at] = (row.tokens[at] + 1) % vocabulary
    allowed = _allowed(lm, row)[:, at]
    state = torch.arange(width, device=lm.device)[:, None]
    ahead = (state < at) & (at < prompt)
    label = (state == at - 1) & (at >= prompt)
    sights: list[Sight] = []
    plain: Tensor | None = None
    for padding in paddings:
        states = _states(lm, row, exchanged, padding)
        plain = states[0] if plain is None else plain
        changed = (states[1:] != states[0]).any(-1).T  # [state, exchanged token]
        sights.append(
            Sight(
                kernel=kernel,
                padding=padding,
                forbidden=int((changed & ~allowed).sum()),
                reads_ahead=float(changed[ahead].float().mean()) if bool(ahead.any()) else 0.0,
                own_label=bool(changed[label].any()),
                unpadded=float((states[0] - plain).abs().max() / plain.abs().max()),
                tokens=width,
            )
        )
    return sights


@torch.no_grad()
def look_at_layers(
    lm: LM, prefix: Prefix, answer: list[int], kernel: str, padding: Padding, positions: Sequence[int]
) -> list[LayerSight]:
    """Measure every layer at once, with noise at each of `positions` in turn; see `look` for the rest.

    Returns:
        One `LayerSight` per layer whose states are `(B, T, D)`; none for a model without such layers.
    """
    row = _Sequence.of(lm, prefix, answer)
    width = len(row.tokens)
    at = torch.tensor(sorted({p for p in positions if p < width}), device=lm.device)
    before = PADS if padding == "left" else 0
    with _noise(lm, at + before) as changed:
        _states(lm, row, row.tokens.repeat(len(at) + 1, 1), padding)
    distance = torch.arange(width, device=lm.device)[:, None] - at[None, :]
    sights, wide, rounding = [], windows(lm), _rounding(lm)
    for layer, shows in enumerate(visible_by_layer(lm, row.blocks, row.layers)):
        if layer not in changed:
            continue
        change, shown = changed[layer][before : before + width], shows[:, at]
        seen, missed = (change > rounding) & ~shown, _missed(shown, change > 0, distance, wide[layer])
        sights.append(
            LayerSight(
                kernel,
                padding,
                layer,
                width,
                change.numel(),
                int(seen.sum()),
                _first(seen, at),
                int(missed.sum()),
                _first(missed, at),
            )
        )
    return sights


def _missed(shows: Tensor, sees: Tensor, distance: Tensor, window: int | None) -> Tensor:
    """Pairs that a mask shows and a layer does not see, in kinds of which it sees none at all.

    A single weight may be too small to change a state, and a layer may attend to nothing but the state itself, so
    a kind counts only where a like one is seen. Kinds are the positions after a state, if it sees some before it,
    and the outermost ones at a window's two edges, if it sees their neighbours. That a causal layer sees what it
    should is for the comparison with the model's own forward to say.
    """
    kinds = [(distance < 0, distance > 0)]
    if window is not None:
        kinds += [(distance == side * (window - 1), distance == side * (window - 2)) for side in (1, -1)]
    missed = torch.zeros_like(sees)
    for kind, like in kinds:
        of_kind = kind & shows
        if int(of_kind.sum()) > 1 and bool((like & sees).any()) and not bool((of_kind & sees).any()):
            missed |= of_kind
    return missed


def _first(pairs: Tensor, at: Tensor) -> tuple[int, int] | None:
    found = pairs.nonzero()
    return None if not len(found) else (int(found[0, 0]), int(at[found[0, 1]]))


@contextmanager
def _noise(lm: LM, at: Tensor) -> Iterator[dict[int, Tensor]]:
    """Adds noise at column `at[n]` of row n + 1 to every layer's input, and takes it back after the layer.

    Yields:
        By layer, how much the states `(T, len(at))` changed with each of the columns, relative to their size.
    """
    changed: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def before(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden = given[0] if given else named["hidden_states"]
        if hidden.ndim != 3 or len(hidden) != len(at) + 1:
            return None
        hidden = hidden.clone()
        rows = torch.arange(len(at), device=hidden.device)
        where = at.to(hidden.device)
        noise = torch.randn((len(at), hidden.shape[2]), generator=generator).to(hidden)
        hidden[rows + 1, where] += NOISE * hidden[0, where].float().std(-1, keepdim=True).to(hidden) * noise
        return ((hidden, *given[1:]), named) if given else (given, {**named, "hidden_states": hidden})

    def after(layer: int) -> Any:
        def hook(module: nn.Module, given: Any, returned: Any) -> Any:
            states = returned[0] if isinstance(returned, tuple) else returned
            if states.ndim != 3 or len(states) != len(at) + 1:
                return None
            difference = (states[1:] - states[:1]).abs().amax(-1).T.float()
            scale = states[0].float().abs().amax(-1)[:, None]
            changed[layer] = (difference / scale.clamp_min(1e-30)).to(at.device)
            clean = states[:1].expand_as(states).clone()
            return (clean, *returned[1:]) if isinstance(returned, tuple) else clean

        return hook

    handles = []
    for layer, module in enumerate(_layers(lm)):
        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after(layer)),
        ]
    try:
        yield changed
    finally:
        for handle in handles:
            handle.remove()


def _rounding(lm: LM) -> float:
    """The share of a state that a change has to exceed.

    Equal rows of a batch may be rounded differently, and experts work in groups whose sizes depend on all of it.
    """
    config, exact = lm.model.config.get_text_config(), lm.model.dtype == torch.float32
    if any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        return 1e-5 if exact else 3e-2
    return 1e-6 if exact else 8e-3


def _layers(lm: LM) -> list[nn.Module]:
    """The decoder layers of a model, none where they are kept in another way than usual."""
    count = int(lm.model.config.get_text_config().num_hidden_layers)
    lists = [m for m in lm.model.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if lists else []


def _states(lm: LM, row: _Sequence, rows: Tensor, padding: Padding) -> Tensor:
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
        torch.where(valid, row.blocks[inside], CAUSAL).expand(count, -1),
    )
    with row_parts.together():
        hidden = lm.run(rows[:, inside], columns, Reading(columns, row.layers))
    return hidden[:, before : before + width].float()


def windows(lm: LM) -> list[int | None]:
    """Each layer's sliding window in tokens, as the configuration says; None for full attention."""
    config = lm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # then a configured window is every layer's
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def visible_by_layer(lm: LM, blocks: Tensor, layers: LayerRange | None) -> list[Tensor]:
    """For each layer `[state, position]`, true where the mask shows the position: made apart from `Reading`."""
    at = torch.arange(len(blocks), device=blocks.device)
    causal = at[None, :] <= at[:, None]
    same = (blocks[:, None] == blocks[None, :]) & (blocks[:, None] != CAUSAL)
    shown = []
    for layer, window in enumerate(windows(lm)):
        see = causal | same if layers is None or layer in layers else causal
        if window is not None:
            see = see & ((at[:, None] - at[None, :]).abs() < window)
        shown.append(see)
    return shown


def _allowed(lm: LM, row: _Sequence) -> Tensor:
    """`[state, token]`, true where some path through the layers leads from token to state."""
    reach = torch.eye(len(row.blocks), device=row.blocks.device)
    for see in visible_by_layer(lm, row.blocks, row.layers):
        reach = ((see.float() @ reach) > 0).float()
    return reach > 0

"""One decoding step: every slot reads its token and chooses the next one, without leaving the device.

Nothing here synchronizes with the host, so a step can be compiled and captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from latentwire.lm.decoding.slots import Slots

Split = Callable[..., Tensor]
"""`latentwire.lm.decoding.split_attention.attend`, on a GPU that can run it."""


class DecodeStep:
    """What a model gets in one step: the cache as `past_key_values=` and the mask as `reading=`.

    Args:
        span: how many columns of the slots are read; no row is longer, the new token included.
        split: an attention kernel that reads only the keys a row has, whatever the span; sdpa without it.
    """

    def __init__(self, slots: Slots, span: int, split: Split | None = None) -> None:
        self.slots, self.span = slots, span
        self.split = None if slots.heads else split
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write a layer's `(B, H, 1, D)` after each row's last key; returns the layer's `(B, H, span, D)`."""
        slots = self.slots
        keys, values = slots.keys[layer], slots.values[layer]
        rows, at = slots.every.to(keys.device), slots.lengths.to(keys.device)
        # index_put is the only way of writing that the compiler does in place.
        keys[rows, :, at] = key[:, :, 0]
        values[rows, :, at] = value[:, :, 0]
        return keys[:, :, : self.span], values[:, :, : self.span]

    def get_seq_length(self, layer: int = 0) -> int:
        """How many keys come before the new token, for models that ask; what they see is the mask's to say."""
        return self.span - 1

    def remember(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing to add: the keys of a memory are in the slots already."""
        return key, value

    def leave(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Nothing to do: keys and values go to the slots."""

    def visible(self, queries: int, keys: int, layer: int, window: int | None) -> Tensor:
        """`(B, 1, 1, span)`, true where the new token may attend to a key; see `Reading.visible`."""
        slots = self.slots
        columns = torch.arange(self.span, device=slots.lengths.device)
        see = columns <= slots.lengths[:, None]
        if window is not None:
            see = see & (slots.next_position[:, None] - slots.positions[:, : self.span] < window)
        return see[:, None, None]

    def by_head(self, see: Tensor, layer: int, heads: int) -> Tensor:
        """As `Reading.by_head`."""
        if not self.slots.heads:
            return see
        has = self.slots.heads[layer][:, :, : self.span].to(see.device)
        return see & has.repeat_interleave(heads // has.shape[1], 1)[:, :, None]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, window: int | None, scale: float | None
    ) -> Tensor:
        """Attention of one query per row, `(B, 1, Hq, D)`; the query is `(B, Hq, 1, D)`.

        The query heads that share a key/value head become rows of one small matrix product, so every sdpa kernel
        that takes a mask reads keys and values once and never repeats them.
        """
        slots = self.slots
        if self.split is not None:
            factor = query.shape[3] ** -0.5 if scale is None else scale
            place = (slots.lengths, slots.next_position, slots.positions)
            return self.split(query.squeeze(2), key, value, *place, window, factor)[:, None]
        name = (window, query.dtype)
        if name not in self._masks:
            see = self.visible(1, self.span, layer, window)
            self._masks[name] = torch.zeros_like(see, dtype=query.dtype).masked_fill(~see, -torch.inf)
        rows, heads, _, width = query.shape
        shared = key.shape[1]
        folded = query.view(rows, shared, heads // shared, width)
        mask = self._masks[name].to(query.device).expand(-1, shared, heads // shared, -1)
        if slots.heads:
            mask = mask.masked_fill(~slots.heads[layer][:, :, None, : self.span], -torch.inf)
        out = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
        return out.reshape(rows, 1, heads, value.shape[3])


def advance(
    states: Callable[[Tensor, Tensor, DecodeStep], Tensor],
    head: Callable[[Tensor], Tensor],
    slots: Slots,
    span: int,
    eos_ids: Tensor,
    split: Split | None = None,
) -> None:
    """Read `slots.tokens` and choose the next tokens greedily; all results are in `slots`.

    Args:
        states: final hidden states `(B, 1, E)` of tokens `(B, 1)` at positions `(B, 1)`. head: logits of states.
        eos_ids: tokens that a row which is `held` may not choose. split: see `DecodeStep`.
    """
    begin(slots)
    hidden = states(slots.tokens[:, None], slots.next_position[:, None], DecodeStep(slots, span, split))
    finish(head, hidden, slots, eos_ids)


def begin(slots: Slots) -> None:
    """Write the positions of the tokens to be read."""
    slots.positions[slots.every, slots.lengths] = slots.next_position


def finish(head: Callable[[Tensor], Tensor], hidden: Tensor, slots: Slots, eos_ids: Tensor) -> None:
    """Choose the next tokens from final hidden states `(B, 1, E)`."""
    logits = head(hidden[:, -1])
    slots.logits.copy_(logits)
    if eos_ids.numel():
        free = (slots.held <= 0)[:, None]
        logits = logits.index_copy(1, eos_ids, torch.where(free, logits[:, eos_ids], -torch.inf).to(logits.dtype))
    chosen = logits.argmax(-1)
    live = (slots.room > 0).to(chosen.dtype)
    slots.tokens.copy_(torch.where(live > 0, chosen, slots.tokens))
    slots.history.index_copy_(1, slots.cursor, slots.tokens[:, None])
    slots.cursor.add_(1)
    for tensor, change in ((slots.lengths, live), (slots.next_position, live), (slots.room, -live)):
        tensor.add_(change)
    slots.held.sub_(live)


def bucket(number: int, least: int) -> int:
    """Round up to a power of two or one and a half times one: few sizes, little waste, and one graph per size."""
    size = least
    while size < number:
        if size * 3 // 2 >= number:
            return size * 3 // 2
        size *= 2
    return size

"""The slow reference: who sees whom by a plain double loop, given to the stock eager implementation.

Nothing here uses the masks, the attention functions or the rotations of `latentwire`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from latentwire.lm.masks.reading import Columns


@dataclass
class Layout:
    """One row's columns as plain lists; the first `memory` of them are keys and values only."""

    valid: list[bool]
    positions: list[int]
    blocks: list[int]
    documents: list[int]
    memory: int = 0

    @classmethod
    def causal(cls, length: int) -> Layout:
        return cls([True] * length, list(range(length)), [-1] * length, [-1] * length)

    def sees(self, query: int, key: int, window: int | None, both_ways: bool) -> bool:
        if query == key:
            return True
        if not self.valid[key]:
            return False
        if self.documents[key] not in (-1, self.documents[query]):
            return False
        distance = self.positions[query] - self.positions[key]
        if window is not None and abs(distance) >= window:
            return False
        if both_ways and self.blocks[query] >= 0 and self.blocks[query] == self.blocks[key]:
            return True
        return distance > 0 or (distance == 0 and key < query)


def layouts(columns: Columns) -> list[Layout]:
    """The same columns as lists, a row each."""
    parts = (columns.valid, columns.positions, columns.blocks, columns.documents)
    return [Layout(*row) for row in zip(*(part.tolist() for part in parts), strict=True)]


def columns_of(rows: Sequence[Layout]) -> Columns:
    return Columns(
        valid=torch.tensor([row.valid for row in rows]),
        positions=torch.tensor([row.positions for row in rows]),
        blocks=torch.tensor([row.blocks for row in rows]),
        documents=torch.tensor([row.documents for row in rows]),
    )


def stock(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights under the stock eager implementation."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain


def windows(model: PreTrainedModel) -> list[int | None]:
    """Each layer's sliding window, by what the family's configuration says."""
    config = model.config
    width = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if width else "full_attention"] * (
        config.num_hidden_layers
    )
    return [width if kind == "sliding_attention" else None for kind in kinds]


def _attentions(model: PreTrainedModel) -> list[nn.Module]:
    found = [m for n, m in model.named_modules() if n.split(".")[-1] in ("self_attn", "attention")]
    assert len(found) == model.config.num_hidden_layers
    return found


def dense(
    plain: PreTrainedModel,
    content: Tensor,
    rows: Sequence[Layout],
    *,
    layers: Sequence[int] | None = None,
    cache: DynamicCache | None = None,
    hidden: bool = False,
) -> Tensor:
    """Logits `(B, Q, V)`, or final hidden states, of one full forward with hand-made masks.

    layers: where blocks count; None for all. cache: keys and values of the rows' memory columns.
    """
    memory = rows[0].memory
    masks = []
    for layer, window in enumerate(windows(plain)):
        both_ways = layers is None or layer in layers
        width = len(rows[0].valid)
        shown = [
            [[row.sees(query, key, window, both_ways) for key in range(width)] for query in range(memory, width)]
            for row in rows
        ]
        mask = torch.where(torch.tensor(shown), 0.0, torch.finfo(torch.float32).min)[:, None]
        masks.append(mask)

    def swap(layer: int) -> Any:
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": masks[layer]})

    hooks = [
        module.register_forward_pre_hook(swap(layer), with_kwargs=True)
        for layer, module in enumerate(_attentions(plain))
    ]
    positions = torch.tensor([row.positions[memory:] for row in rows])
    key = "inputs_embeds" if content.is_floating_point() else "input_ids"
    try:
        states: Tensor = plain.get_decoder()(
            **{key: content},
            attention_mask=masks[0],
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    if hidden:
        return states
    logits: Tensor = plain.get_output_embeddings()(states)
    cap = getattr(plain.config, "final_logit_softcapping", None)
    return logits if not cap else torch.tanh(logits / cap) * cap


def rotated(plain: PreTrainedModel, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
    """Keys `(B, H, M, D)` rotated by the family's own function."""
    module = sys.modules[type(_attentions(plain)[0]).__module__]
    embedding = plain.get_decoder().rotary_emb
    kinds = getattr(plain.config, "layer_types", None)
    named = kinds and hasattr(embedding, f"{kinds[layer]}_inv_freq")
    cos, sin = embedding(keys, positions, kinds[layer]) if named else embedding(keys, positions)
    turned: Tensor = module.apply_rotary_pos_emb(keys, keys, cos, sin)[1]
    return turned


def numbers(length: int, seed: int) -> list[int]:
    """`length` token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(3, 320, (length,), generator=generator).tolist()
    return ids

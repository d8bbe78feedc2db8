"""Rotates and un-rotates keys with a model's own rotary embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.masks.reading import Memory

TOGETHER = 2**25
"""How many numbers are turned at a time; there are about five times as many in float32 on the way."""
IN_CACHE = 2**20
"""The same on a CPU, where they are turned five times as fast if the cache holds them."""


class Rotary:
    """A model's rotation of keys by position.

    The two halves of the first `cos.shape[-1]` channels are rotated against each other, as in Llama, Qwen,
    Mistral, Gemma and GPT-NeoX (partly rotated heads included). Interleaved rotations (Cohere, GLM) come back
    wrong and are refused by `probe`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def _angles(self, layer: int, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor] | None:
        backbone = self._model.get_decoder()
        embedding: nn.Module | None = getattr(backbone, "rotary_emb", None)
        if embedding is None:
            return None
        kinds = getattr(self._model.config.get_text_config(), "layer_types", None)
        # In float32: bf16 angles of far positions would not survive rotating there and back.
        probe = torch.zeros(like.shape[0], 1, dtype=torch.float32, device=like.device)
        if kinds and hasattr(embedding, f"{kinds[layer]}_inv_freq"):
            cos, sin = embedding(probe, positions, kinds[layer])
        else:
            cos, sin = embedding(probe, positions)
        return cos[:, None], sin[:, None]

    def rotate(self, layer: int, keys: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """Keys `(B, H, M, D)` rotated to (or, with `back`, from) `positions` `(B, M)`."""
        return _turned(keys, self._turn(layer, positions, keys, back))

    def rotate_all(self, keys: Sequence[Tensor], positions: Tensor, *, back: bool = False) -> tuple[Tensor, ...]:
        """`rotate` for every layer's keys, with angles computed once for all layers that share them."""
        kinds = getattr(self._model.config.get_text_config(), "layer_types", None) or [None] * len(keys)
        alike: dict[object, list[int]] = {}
        for layer, key in enumerate(keys):
            alike.setdefault((kinds[layer], key.device, key.dtype, key.shape), []).append(layer)
        made: dict[int, Tensor] = {}
        for layers in alike.values():
            angles = self._turn(layers[0], positions, keys[layers[0]], back)
            # Several layers as more heads of one: a GPU would take longer to launch many small operations.
            first = keys[layers[0]]
            size = max(1, (IN_CACHE if first.is_cpu else TOGETHER) // max(1, first.numel()))
            for at in range(0, len(layers), size):
                some = layers[at : at + size]
                joined = torch.cat([keys[layer] for layer in some], 1) if len(some) > 1 else keys[some[0]]
                turned = _turned(joined, angles)
                made |= zip(some, turned.chunk(len(some), 1), strict=True)
        return tuple(made[layer] for layer in range(len(keys)))

    def _turn(self, layer: int, positions: Tensor, like: Tensor, back: bool) -> tuple[Tensor, Tensor] | None:
        angles = self._angles(layer, positions, like)
        if angles is None or not back:
            return angles
        cos, sin = angles
        # The model may scale cosine and sine (YaRN): divide by the squared length to undo it.
        length = cos.square() + sin.square()
        return cos / length, -sin / length

    def memory(self, memory: Memory, shift: int = 0) -> Memory:
        """`memory` with its keys rotated to its positions, `shift` further on."""
        at = memory.columns.positions + shift
        return replace(memory, keys=self.rotate_all(memory.keys, at))

    @torch.no_grad()
    def probe(self) -> None:
        """Check that un-rotated keys of one token are the same at every position.

        A token that stands alone attends to itself whatever its position, so in every layer its key
        before rotation must come back the same from positions 0 and 7.

        Raises:
            UserError: the model rotates in a way not known here.
        """
        from transformers import DynamicCache

        model = self._model
        positions = torch.tensor([[0], [7]], device=model.device)
        token = torch.full_like(positions, min(17, model.config.get_text_config().vocab_size - 1))
        cache = DynamicCache()
        with evaluating(model):
            model(input_ids=token, position_ids=positions, past_key_values=cache, use_cache=True)
        for layer, held in enumerate(cache.layers):
            keys: Tensor = held.keys.float()  # type: ignore[union-attr]
            first, second = self.rotate(layer, keys, positions, back=True)
            if not torch.allclose(first, second, atol=1e-2 * float(first.abs().max())):
                raise UserError(
                    f"model: {type(model).__name__} rotates keys in a way not known here (interleaved, or not in "
                    "every layer), so key/value prefixes cannot be placed; expected half-split rotary positions."
                )


def _turned(keys: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    if angles is None:
        return keys
    cos, sin = angles
    width = cos.shape[-1]
    turned, rest = keys[..., :width].float(), keys[..., width:]
    first, second = turned.chunk(2, -1)
    turned = (turned * cos + torch.cat([-second, first], -1) * sin).to(keys.dtype)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

"""Rotating and un-rotating keys with a model's own rotary embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm.checks import evaluating
from latentwire.lm.reading import Memory


class Rotary:
    """A model's rotation of keys, as two functions of position.

    Rotation turns the two halves of the first `cos.shape[-1]` channels against each other, as
    Llama, Qwen, Mistral, Gemma and GPT-NeoX (partly rotated heads included) do. Interleaved rotations
    (Cohere, GLM) come back wrong and are refused by `probe`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def _angles(self, layer: int, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor] | None:
        backbone = self._model.get_decoder()
        embedding: nn.Module | None = getattr(backbone, "rotary_emb", None)
        if embedding is None:
            return None
        kinds = getattr(self._model.config.get_text_config(), "layer_types", None)
        # In bf16 the angles of far positions would not survive the way there and back.
        probe = torch.zeros(like.shape[0], 1, dtype=torch.float32, device=like.device)
        if kinds and hasattr(embedding, f"{kinds[layer]}_inv_freq"):
            cos, sin = embedding(probe, positions, kinds[layer])
        else:
            cos, sin = embedding(probe, positions)
        return cos[:, None], sin[:, None]

    def rotate(self, layer: int, keys: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """Keys `(B, H, M, D)` turned to (or, with `back`, from) `positions` `(B, M)`."""
        angles = self._angles(layer, positions, keys)
        if angles is None:
            return keys
        cos, sin = angles
        if back:
            # The model may scale cosine and sine (YaRN): divide by the squared length to undo it.
            length = cos.square() + sin.square()
            cos, sin = cos / length, -sin / length
        width = cos.shape[-1]
        turned, rest = keys[..., :width].float(), keys[..., width:]
        first, second = turned.chunk(2, -1)
        turned = turned * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([turned.to(keys.dtype), rest], -1)

    def memory(self, memory: Memory, shift: int = 0) -> Memory:
        """`memory` with its keys rotated to its positions, `shift` further on."""
        at = memory.columns.positions + shift
        keys = tuple(self.rotate(layer, key, at) for layer, key in enumerate(memory.keys))
        return Memory(keys, memory.values, memory.columns)

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

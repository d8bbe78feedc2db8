"""A frozen text model of any family, for encoders that learn what to take from its states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from latentwire import models
from latentwire.errors import UserError
from latentwire.lm.prefix import pad_rows
from latentwire.wires.latent.fingerprints import of_module


class FrozenText:
    """A frozen encoder or decoder (or the encoder of an encoder-decoder) that gives token states.

    It is deliberately no `nn.Module`: its weights are neither trained nor saved with a wire, only fingerprinted.

    Args:
        name: a hub id, a folder, or `embedded:NAME`.

    Raises:
        UserError: it cannot be loaded, or weights are missing.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self._device = name, device
        where = str(models.folder(name.removeprefix("embedded:"))) if name.startswith("embedded:") else name
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            model, info = AutoModel.from_pretrained(
                where, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"encoder: found model {name!r}, expected a Hugging Face text model: {line}"
            ) from error
        # Many checkpoints lack the pooler, which only classifiers use.
        lacking = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if lacking:
            raise UserError(f"encoder: {name} lacks {lacking[0]}, expected every weight of the model.")
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self._model: nn.Module = model.to(device).eval().requires_grad_(False)
        self.width = int(model.config.get_text_config().hidden_size)
        limits = (self._tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        self._limit = min(int(each) for each in (*limits, 2**31) if each)

    def fingerprint(self) -> str:
        return of_module(self._model)

    @torch.no_grad()
    def __call__(self, contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States `(B, T, width)` in float32 and `valid` `(B, T)`, padded on the right.

        Raises:
            UserError: a context has no token, or more than the model was built for.
        """
        rows = [self._tokenizer(context)["input_ids"] for context in contexts]
        found = next((len(row) for row in rows if not 0 < len(row) <= self._limit), None)
        if found is not None:
            raise UserError(f"context: found {found:,} tokens, expected 1 to {self._limit:,} for {self.name}.")
        # Some families count positions by the tokens that are not padding.
        ids = pad_rows(rows, self._tokenizer.pad_token_id or 0).to(self._device)
        valid = pad_rows([[1] * len(row) for row in rows], 0).bool().to(self._device)
        states: Tensor = self._model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        return states.float(), valid

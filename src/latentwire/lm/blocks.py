"""`with latentwire.blocks(model, ...):` the mask in anyone's own loop around a Transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm import attention
from latentwire.lm.reading import CAUSAL, SHARED, Columns, LayerRange, Reading


@contextmanager
def blocks(
    model: nn.Module,
    prompt: Tensor | Sequence[int],
    *,
    layers: tuple[int, int] | None = None,
    documents: Tensor | None = None,
) -> Iterator[None]:
    """Inside the block every forward of `model` reads the prompt bidirectionally and the rest causally.

    Works around a plain forward, a training step (activation checkpointing included, also with the backward
    pass outside) and `generate` with dynamic or static caches, beams and assistants. Padding may stand on
    either side. Afterwards the model is as it was.

    Args:
        model: a Transformers decoder, bare or wrapped (PEFT, DDP).
        prompt: `(B,)` prompt lengths in tokens, padding not counted; or `(B, T)` block ids by column:
            equal ids >= 0 see each other, -1 is causal, columns behind T are causal.
        layers: `(first, last)`, both included: blocks count there only.
        documents: `(B, T)` ids of packed documents, which do not see each other. Without it documents are
            told apart where `position_ids` start anew, as Transformers does.

    Raises:
        UserError: the model cannot carry the mask, rows do not match, or the prompt comes in chunks
            (`prefill_chunk_size`), whose first part could not see the later ones.
    """
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if inner is None:
        raise UserError(f"blocks: found {type(model).__name__}, expected a Transformers model.")
    mask = _Mask(
        torch.as_tensor(prompt), None if layers is None else LayerRange(layers[0], layers[1] + 1), documents
    )
    before = attention.install(inner)
    hook = inner.register_forward_pre_hook(mask.before_forward, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()
        attention.uninstall(inner, before)


class _Mask:
    """Builds the reading of each forward from what the caller passes to it."""

    def __init__(self, prompt: Tensor, layers: LayerRange | None, documents: Tensor | None) -> None:
        if prompt.ndim not in (1, 2):
            raise UserError(
                f"blocks: found a prompt of {prompt.ndim} dimensions, expected lengths (B,) or ids (B, T)."
            )
        self.prompt, self.layers, self.documents = prompt.long(), layers, documents

    def before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        content = next((kwargs[k] for k in ("input_ids", "inputs_embeds") if kwargs.get(k) is not None), None)
        content = args[0] if content is None else content
        return args, {**kwargs, "reading": self._reading(model, content, kwargs)}

    def _reading(self, model: nn.Module, content: Tensor, kwargs: dict[str, Any]) -> Reading:
        rows, queries = content.shape[:2]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        total = past + queries
        padding = kwargs.get("attention_mask")
        if padding is not None and padding.ndim != 2:
            raise UserError("blocks: found a ready-made attention mask, expected a padding mask (B, T) or none.")
        if padding is None:
            valid = torch.ones(rows, total, dtype=torch.bool, device=content.device)
        else:
            valid = padding[:, :total].bool().to(content.device)
        positions, documents = self._layout(valid, kwargs.get("position_ids"), past)
        block = self._blocks(valid, rows, total)
        _refuse_chunks(block, past)
        layer_count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
        spans = None
        if cache is not None:
            sizes = [cache.get_mask_sizes(queries, layer) for layer in range(layer_count)]
            spans = tuple((int(offset), int(length)) for length, offset in sizes)
        return Reading(Columns(valid, positions, block, documents), self.layers, spans=spans)

    def _layout(self, valid: Tensor, position_ids: Tensor | None, past: int) -> tuple[Tensor, Tensor]:
        rows, total = valid.shape
        counted = (valid.long().cumsum(1) - 1).clamp_min(0)
        if self.documents is not None:
            given = _fit(self.documents.to(valid.device), rows, total, SHARED)
            if position_ids is not None and past == 0:
                counted = position_ids.expand(rows, -1).to(valid.device)
            return counted, given
        shared = torch.full_like(counted, SHARED)
        if position_ids is None or past > 0 or not bool(valid.all()):
            return counted, shared
        positions = position_ids.expand(rows, -1).to(valid.device)
        starts = torch.diff(positions, prepend=positions[:, :1] - 1) != 1
        return positions, (starts.cumsum(1) if bool(starts.any()) else shared)

    def _blocks(self, valid: Tensor, rows: int, total: int) -> Tensor:
        if self.prompt.ndim == 2:
            return _fit(self.prompt.to(valid.device), rows, total, CAUSAL)
        lengths = _match(self.prompt.to(valid.device), rows)
        inside = valid & (valid.long().cumsum(1) <= lengths[:, None])
        return torch.where(inside, 0, CAUSAL)


def _match(given: Tensor, rows: int) -> Tensor:
    """Rows as the model sees them: beams and several samples repeat each of the caller's rows."""
    if rows % len(given):
        raise UserError(f"blocks: found {len(given)} rows, expected the model's {rows} or a divisor of it.")
    return given.repeat_interleave(rows // len(given), 0)


def _fit(given: Tensor, rows: int, total: int, fill: int) -> Tensor:
    given = _match(given.long(), rows)
    missing = total - given.shape[1]
    if missing > 0:
        return torch.nn.functional.pad(given, (0, missing), value=fill)
    # A prompt read in part would silently be another prompt; `_refuse_chunks` looks at what is cut off.
    if bool((given[:, total:] != fill).any()):
        raise UserError(
            f"blocks: found {total} columns of a prompt that has {given.shape[1]}, expected all of them at once "
            "(no prefill_chunk_size): the first could not see the later ones."
        )
    return given[:, :total]


def _refuse_chunks(block: Tensor, past: int) -> None:
    """A block that began in the cache and goes on now would have been read only in part."""
    old, new = block[:, :past], block[:, past:]
    crossing = (new[:, :, None] == old[:, None, :]) & (new[:, :, None] != CAUSAL)
    if past and bool(crossing.any()):
        raise UserError(
            "blocks: found a prompt read in chunks, expected one forward pass for all of it "
            "(no prefill_chunk_size): the first chunk could not see the later ones."
        )

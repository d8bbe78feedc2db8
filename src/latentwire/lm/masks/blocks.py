"""`with latentwire.blocks(model, ...):` our masks in your own code around a Transformers model."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import SHARED, Columns, LayerRange, Reading
from latentwire.lm.prompts import CAUSAL


@contextmanager
def blocks(
    model: nn.Module,
    prompt: Tensor | Sequence[int],
    *,
    layers: tuple[int, int] | None = None,
    documents: Tensor | None = None,
) -> Iterator[None]:
    """Inside the block every forward of `model` reads the prompt bidirectionally and the rest causally.

    Works for a plain forward, a training step (with activation checkpointing too, and with the backward pass
    outside the block) and `generate` with dynamic or static caches, beams and assistants. Padding may be on either
    side. Afterwards the model is restored: at once, or, where a graph still has to recompute layers (a
    checkpointed backward pass outside), when that graph is gone. Of nested blocks the inner one counts.

    Args:
        model: a Transformers decoder, bare or wrapped (PEFT, DDP).
        prompt: `(B,)` prompt lengths in tokens, padding not counted; or `(B, T)` block ids by column:
            equal ids >= 0 see each other, -1 is causal, columns after T are causal.
        layers: `(first, last)`, both included: blocks count there only.
        documents: `(B, T)` ids of packed documents, which do not see each other. Without it a document starts
            where `position_ids` start again, as in Transformers, and also in rows with padding.

    Raises:
        UserError: the model cannot carry the mask or ignores it, rows do not match, or the prompt comes in
            chunks (`prefill_chunk_size`), whose first part could not see the later ones.

    Example:
        ```python
        with latentwire.blocks(model, prompt_lengths):
            loss = model(input_ids, labels=labels).loss
        ```
    """
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if inner is None:
        raise UserError(f"blocks: found {type(model).__name__}, expected a Transformers model.")
    if any(getattr(getattr(m, "active_peft_config", None), "is_prompt_learning", False) for m in model.modules()):
        raise UserError("blocks: found a learned prompt (PEFT), whose virtual tokens would shift the blocks.")
    mask = _Mask(
        inner, torch.as_tensor(prompt), None if layers is None else LayerRange(layers[0], layers[1] + 1), documents
    )
    _hold(inner, mask)
    hooks = []
    # A call of the backbone alone gets the mask too; inside its model's forward it has one already.
    for module in {inner, inner.get_decoder()}:
        hooks.append(module.register_forward_pre_hook(mask.before_forward, with_kwargs=True, prepend=True))
        hooks.append(module.register_forward_hook(_refuse_ignored, with_kwargs=True))
    # For compilable caches `generate` makes causal masks in advance and does not pass the padding on.
    ahead = vars(inner).get("create_masks_for_generate")
    inner.create_masks_for_generate = _padding_as_it_is  # type: ignore[assignment]
    try:
        yield
    except BaseException:
        # The traceback keeps the failed forward's reading alive, but no backward pass will use it.
        for holder in mask.made:
            _release(inner, holder)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        del inner.create_masks_for_generate
        if ahead is not None:
            inner.create_masks_for_generate = ahead
        _release(inner, mask)


_HELD: weakref.WeakKeyDictionary[PreTrainedModel, tuple[str, set[object]]] = weakref.WeakKeyDictionary()
"""Per model: its own attention implementation, and the holders that still need ours."""


def _hold(model: PreTrainedModel, holder: object) -> None:
    """Keep our attention function in the model for `holder`.

    A block needs it, and so does every reading with which autograd may recompute a layer: activation checkpointing
    looks the attention function up again, in a backward pass that may come after the block.
    """
    if model not in _HELD:
        _HELD[model] = (attention.install(model), set())
    _HELD[model][1].add(holder)


def _release(model: PreTrainedModel, holder: object) -> None:
    """Restore the model's own implementation when the last holder goes."""
    before, holders = _HELD.get(model, ("", set()))
    if holder in holders:
        holders.remove(holder)
        if not holders:
            del _HELD[model]
            attention.uninstall(model, before)


class _Mask:
    """Builds the reading of each forward from the caller's arguments.

    Attributes:
        made: the holders of the readings that were made under autograd.
    """

    def __init__(
        self, model: PreTrainedModel, prompt: Tensor, layers: LayerRange | None, documents: Tensor | None
    ) -> None:
        if prompt.ndim not in (1, 2):
            raise UserError(
                f"blocks: found a prompt of {prompt.ndim} dimensions, expected lengths (B,) or ids (B, T)."
            )
        self.prompt, self.layers, self.documents = prompt.long(), layers, documents
        self.model = model
        self.made: list[object] = []

    def before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get("reading") is not None:
            return args, kwargs
        named = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}
        content = next(named[name] for name in ("input_ids", "inputs_embeds") if named.get(name) is not None)
        reading = self._reading(model, content, named)
        if torch.is_grad_enabled():
            holder = object()
            self.made.append(holder)
            _hold(self.model, holder)
            weakref.finalize(reading, _release, self.model, holder).atexit = False
        return (), {**named, "reading": reading}

    def _reading(self, model: nn.Module, content: Tensor, kwargs: dict[str, Any]) -> Reading:
        rows, queries = content.shape[:2]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        total = past + queries
        padding = kwargs.get("attention_mask")
        if padding is not None and (not isinstance(padding, Tensor) or padding.ndim != 2):
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
            config = model.config.get_text_config()  # type: ignore[union-attr,operator]
            sizes = [cache.get_mask_sizes(queries, owner) for owner in _key_owners(config, layer_count)]
            spans = tuple((int(offset), int(length)) for length, offset in sizes)
        return Reading(Columns(valid, positions, block, documents), self.layers, spans=spans)

    def _layout(self, valid: Tensor, position_ids: Tensor | None, past: int) -> tuple[Tensor, Tensor]:
        """The positions that the model rotates by, and the documents."""
        rows, total = valid.shape
        if position_ids is None:
            positions = torch.arange(total, device=valid.device).expand(rows, -1)
        else:
            now = position_ids.to(valid.device).expand(rows, -1)
            # Positions in the cache are not known: they are counted back from the first new one.
            counted = valid.long().cumsum(1)
            positions = torch.cat([counted[:, :past] + now[:, :1] - counted[:, past : past + 1], now], 1)
        shared = torch.full_like(positions, SHARED)
        if self.documents is not None:
            return positions, _fit(self.documents.to(valid.device), rows, total, SHARED)
        if position_ids is None or past > 0:
            return positions, shared
        # Compared with the last real column before it: padding has positions that mean nothing.
        index = torch.arange(total, device=valid.device).expand(rows, -1)
        before = torch.nn.functional.pad(torch.where(valid, index, -1).cummax(1).values[:, :-1], (1, 0), value=-1)
        follows = positions == positions.gather(1, before.clamp_min(0)) + 1
        starts = valid & (before >= 0) & ~follows
        return positions, (starts.cumsum(1) if bool(starts.any()) else shared)

    def _blocks(self, valid: Tensor, rows: int, total: int) -> Tensor:
        if self.prompt.ndim == 2:
            return _fit(self.prompt.to(valid.device), rows, total, CAUSAL)
        lengths = _match(self.prompt.to(valid.device), rows)
        inside = valid & (valid.long().cumsum(1) <= lengths[:, None])
        return torch.where(inside, 0, CAUSAL)


def _key_owners(config: Any, layers: int) -> list[int]:
    """For each layer, the one whose keys and values it reads: its own, or those of an earlier layer of its type.

    Gemma 3n and Gemma 4 share keys and values among their last layers, which have no place in the cache.
    """
    shared = int(getattr(config, "num_kv_shared_layers", 0) or 0)
    owning = layers - shared
    if not 0 < owning < layers:
        return list(range(layers))
    kinds = list(config.layer_types)
    last = {kind: layer for layer, kind in enumerate(kinds[:owning])}
    return [*range(owning), *(last[kind] for kind in kinds[owning:layers])]


def _padding_as_it_is(attention_mask: Tensor, **_: object) -> Tensor:
    return attention_mask


def _refuse_ignored(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
    if not kwargs["reading"].asked:
        raise UserError(f"blocks: {type(model).__name__} does not ask for its mask, so it would stay causal.")


def _match(given: Tensor, rows: int) -> Tensor:
    """Repeat the caller's rows as the model does for beams and several samples."""
    if not len(given) or rows % len(given):
        raise UserError(f"blocks: found {len(given)} rows, expected the model's {rows} or a divisor of it.")
    return given.repeat_interleave(rows // len(given), 0)


def _fit(given: Tensor, rows: int, total: int, fill: int) -> Tensor:
    given = _match(given.long(), rows)
    missing = total - given.shape[1]
    if missing > 0:
        return torch.nn.functional.pad(given, (0, missing), value=fill)
    # A prompt read in part would silently be another prompt; `_refuse_chunks` checks what is cut off.
    if bool((given[:, total:] != fill).any()):
        raise UserError(
            f"blocks: found {total} columns of a prompt that has {given.shape[1]}, expected all of them at once "
            "(no prefill_chunk_size): the first could not see the later ones."
        )
    return given[:, :total]


def _refuse_chunks(block: Tensor, past: int) -> None:
    """Refuse a block that began in the cache and continues now: it would have been read only in part."""
    old, new = block[:, :past], block[:, past:]
    crossing = (new[:, :, None] == old[:, None, :]) & (new[:, :, None] != CAUSAL)
    if past and bool(crossing.any()):
        raise UserError(
            "blocks: found a prompt read in chunks, expected one forward pass for all of it "
            "(no prefill_chunk_size): the first chunk could not see the later ones."
        )

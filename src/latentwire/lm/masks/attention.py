"""Attention functions that read their mask from `reading=`.

Registered beside Transformers' own under `latentwire_sdpa`, `latentwire_eager`, `latentwire_flex` and
`latentwire_split`. Without `reading` each is its stock counterpart (`split`: sdpa) to the bit: a model may keep
the implementation and still be called by anyone else.

`flex` and `split` read whole rows of packed documents. Everything else that a model is asked while it trains with
them (a prefill with memory, a step after a cache, shapes that would need a new compilation) uses the dense mask,
which is right everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, flex_attention_mask, sdpa_mask

from latentwire.errors import UserError
from latentwire.lm.decoding.decode_step import DecodeStep
from latentwire.lm.decoding.layerwise import LayerStep
from latentwire.lm.masks import flex
from latentwire.lm.masks import varlen_runs as split
from latentwire.lm.masks.intervals import intervals
from latentwire.lm.masks.reading import Reading
from latentwire.lm.masks.safe_gradients import safe_gradients

Attention = Callable[..., tuple[Tensor, Tensor | None]]
States = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""
Reads = Callable[[nn.Module, States, Reading | DecodeStep, dict[str, Any]], tuple[Tensor, Tensor | None]]
Fast = Callable[[Reading, States, int, int | None, dict[str, Any]], Tensor | None]
"""Takes a layer's index, its window and the keyword arguments; None if the kernel cannot read the mask."""
PREFIX = "latentwire_"
STOCK = {"sdpa": "sdpa", "eager": "eager", "flex": "flex_attention"}
"""Our names, and the names in Transformers of the same computation."""
_SOFT_CAP = "attn_logit_softcapping"
KERNELS = (*STOCK, "split")
"""`sdpa` and `eager` take dense masks; `flex` and `split` take intervals, for training."""


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    # Every modeling file brings its own eager function; soft-capping and sinks live there.
    forward: Attention = sys.modules[type(module).__module__].eager_attention_forward
    return forward(module, *args, **kwargs)


Form = Callable[[Tensor, torch.dtype], Tensor]
"""Who sees whom, and the dtype of the queries, to the mask that a kernel adds to its scores."""
ALIGNED = 8
"""Rows of a mask begin at a multiple of this many numbers: sdpa's memory-efficient kernel would copy others."""


def _infinite(see: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that sdpa makes of a boolean one, in every layer anew."""
    columns = see.shape[-1]
    width = -(-columns // ALIGNED) * ALIGNED if torch.is_grad_enabled() else columns
    made = see.new_full((*see.shape[:-1], width), -torch.inf, dtype=dtype)[..., :columns]
    return made.masked_fill_(see, 0)


def _additive(see: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(see, 0.0, torch.finfo(dtype).min).to(dtype)


def _window(module: nn.Module, kwargs: dict[str, Any]) -> int | None:
    window: int | None = kwargs.get("sliding_window")
    kinds = getattr(module.config, "layer_types", None)
    # Without `layer_types` a configured window is every layer's.
    everywhere = getattr(module.config, "sliding_window", None) is not None
    if window is None and (kinds[module.layer_idx] == "sliding_attention" if kinds else everywhere):
        raise UserError(
            f"attention: {type(module).__name__} slides its window without telling the attention function, "
            "so a mask cannot be made right here; expected a model that passes sliding_window."
        )
    return window


def _attention(stock: Attention, reads: Reads) -> Attention:
    """`stock` without `reading=`, else `reads`."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        reading: Reading | DecodeStep | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if torch.compiler.is_compiling() and isinstance(reading, Reading):
            out: tuple[Tensor, Tensor | None] = apart(module, (query, key, value), reading, kwargs)
            return out
        with safe_gradients():
            if reading is None:
                return stock(module, query, key, value, attention_mask, **kwargs)
            return reads(module, (query, key, value), reading, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def apart(
        module: nn.Module, states: States, reading: Reading, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        # A compiled layer stops here: masks and memory differ from pass to pass, and from layer to layer.
        with safe_gradients():
            return reads(module, states, reading, kwargs)

    return attend


def _made_once(
    reading: Reading | DecodeStep, query: Tensor, keys: int, layer: int, window: int | None, form: Form
) -> Tensor:
    """The mask of a layer, made once for all layers that share it."""

    def made() -> Tensor:
        see = reading.visible(query.shape[2], keys, layer, window).to(query.device)
        return form(reading.by_head(see, layer, query.shape[1]), dtype)

    dtype = _computes_in(query)
    if isinstance(reading, DecodeStep) or reading.by_layer:
        return made()
    name = reading.seen(query.shape[2], keys, layer, window)
    return reading.once((form, dtype, query.device, *name), made)


def _dense(stock: Attention, form: Form) -> Reads:
    def read(
        module: nn.Module, states: States, reading: Reading | DecodeStep, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        query, key, value = states
        if stock is sdpa_attention_forward and isinstance(reading, LayerStep):
            window = kwargs.get("sliding_window")
            return reading.attended(query, key, value, window, kwargs.get("scaling")), None
        layer: int = module.layer_idx  # type: ignore[assignment]
        if stock is sdpa_attention_forward and isinstance(reading, DecodeStep):
            return reading.attend(query, key, value, layer, _window(module, kwargs), kwargs.get("scaling")), None
        reading.leave(layer, key, value)
        queries, keys, window = query.shape[2], key.shape[2], _window(module, kwargs)
        plain = isinstance(reading, Reading) and reading.causal(queries, keys, window)
        if plain and stock is sdpa_attention_forward and _groups(query, key):
            return stock(module, query, key, value, None, **{**kwargs, "is_causal": True})
        mask = _made_once(reading, query, keys, layer, window, form)
        key, value = reading.remember(layer, key, value)
        return stock(module, query, key, value, mask, **kwargs)

    return read


_DENSE = {"sdpa": _dense(sdpa_attention_forward, _infinite), "eager": _dense(_eager, _additive)}


def _trains(fast: Fast) -> Reads:
    """`fast` if it can read the mask (it returns None if not), else a dense mask."""

    def read(
        module: nn.Module, states: States, reading: Reading | DecodeStep, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        # sdpa knows neither soft-capping nor sinks.
        dense = _DENSE["sdpa" if kwargs.get("softcap") is None and kwargs.get("s_aux") is None else "eager"]
        if isinstance(reading, DecodeStep) or kwargs.get("s_aux") is not None or kwargs.get("dropout"):
            return dense(module, states, reading, kwargs)
        query, key, value = states
        if reading.whole(query.shape[2], key.shape[2]) and intervals(reading) is not None:
            layer: int = module.layer_idx  # type: ignore[assignment]
            reading.leave(layer, key, value)
            out = fast(reading, _one_dtype(query, key, value), layer, _window(module, kwargs), kwargs)
            if out is not None:
                return out, None
        return dense(module, states, reading, kwargs)

    return read


def _one_dtype(query: Tensor, key: Tensor, value: Tensor) -> States:
    # Under autocast rotated queries are float32 beside half-precision values; sdpa alone is cast by autocast.
    dtype = _computes_in(query)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _computes_in(query: Tensor) -> torch.dtype:
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _groups(query: Tensor, key: Tensor) -> bool:
    """Whether a fused kernel takes grouped heads without a mask; on a GPU only those for 16 bits do."""
    return not query.is_cuda or _half(query) or query.shape[1] == key.shape[1]


def _half(query: Tensor) -> bool:
    return query.dtype in (torch.bfloat16, torch.float16)


def _flex(
    reading: Reading, states: States, layer: int, window: int | None, kwargs: dict[str, Any]
) -> Tensor | None:
    query, key, value = states
    # On a CPU FlexAttention has no backward pass (pytorch#148752).
    if query.shape[2] % flex.MULTIPLE or (torch.is_grad_enabled() if not query.is_cuda else not _half(query)):
        return None
    mask = flex.block_mask(reading, reading.both_ways(layer), window, query.device)
    return flex.attend(mask, query, key, value, scale=kwargs.get("scaling"), cap=kwargs.get("softcap"))


def _split(
    reading: Reading, states: States, layer: int, window: int | None, kwargs: dict[str, Any]
) -> Tensor | None:
    query, key, value = states
    if kwargs.get("softcap") is not None or (query.is_cuda and not _half(query)):
        return None
    both_ways, scale = reading.both_ways(layer), kwargs.get("scaling")
    return split.attend(reading, query, key, value, both_ways=both_ways, window=window, scale=scale)


for _name, _stock, _reads, _mask in (
    ("sdpa", sdpa_attention_forward, _DENSE["sdpa"], sdpa_mask),
    ("eager", _eager, _DENSE["eager"], eager_mask),
    ("flex", flex_attention_forward, _trains(_flex), flex_attention_mask),
    ("split", sdpa_attention_forward, _trains(_split), sdpa_mask),
):
    AttentionInterface.register(PREFIX + _name, _attention(_stock, _reads))
    AttentionMaskInterface.register(PREFIX + _name, _mask)


def install(model: PreTrainedModel, attention: str | None = None) -> str:
    """Make `model` obey `reading=`; returns its previous implementation, for `uninstall`.

    Args:
        attention: one of `KERNELS`; None keeps the kernel the model already uses, or takes `eager` if the model
            soft-caps its attention scores.

    Raises:
        UserError: the model or the kernel cannot carry our masks correctly.
    """
    before: str = model.config._attn_implementation
    ours = {theirs: name for name, theirs in STOCK.items()}
    name = attention or ours.get(before, before.removeprefix(PREFIX))
    if attention is None and name == "sdpa" and getattr(model.config.get_text_config(), _SOFT_CAP, None):
        name = "eager"  # sdpa leaves the soft cap of the scores out
    refuse(model, name)
    try:
        model.set_attn_implementation(PREFIX + name)
    except ValueError as error:
        kind = type(model).__name__
        raise UserError(f"attention: {kind} has no {name} kernel, expected another one.") from error
    if model.config._attn_implementation != PREFIX + name:
        raise UserError(f"attention: {type(model).__name__} does not let its attention function be chosen.")
    return before


def kernel(model: PreTrainedModel) -> str:
    """Which of `KERNELS` a model reads with, once `install` has been called."""
    return str(model.config._attn_implementation).removeprefix(PREFIX)


def uninstall(model: PreTrainedModel, before: str) -> None:
    """Restore the implementation that `install` returned."""
    model.set_attn_implementation(before)


def refuse(model: PreTrainedModel, name: str) -> None:
    """Refuse what would run and be wrong.

    Raises:
        UserError: one sentence saying why.
    """
    config = model.config.get_text_config()
    kind = type(model).__name__
    if name not in KERNELS:
        raise UserError(
            f"attention: found {name!r}, expected sdpa, eager, flex or split; other kernels take no mask of ours."
        )
    if config.is_encoder_decoder:
        raise UserError(f"model: {kind} is an encoder-decoder; expected a decoder-only language model.")
    if not getattr(model, "_supports_attention_backend", False):
        raise UserError(f"model: {kind} does not route attention through Transformers' interface.")
    strange = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if strange:
        raise UserError(
            f"model: {kind} has layers of type {sorted(strange)[0]!r}; "
            "expected full or sliding attention only, since no mask reaches the others."
        )
    if getattr(config, "alibi", False):
        raise UserError(f"model: {kind} encodes positions as attention biases (ALiBi), which masks would lose.")
    if name in ("sdpa", "split") and getattr(config, "attn_logit_softcapping", None):
        raise UserError(
            f"attention: {kind} soft-caps its attention scores, which {name} ignores; use eager or flex."
        )

"""Scaled dot-product attention whose gradient can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def safe_gradients() -> Iterator[None]:
    """Keep cuDNN's attention out of every call inside the block that may be differentiated.

    On Hopper GPUs PyTorch prefers cuDNN's attention, whose backward pass returns NaN for the queries when a mask
    is given, the number of keys is 64 modulo 128, and the log-sum-exp of a row is below about -88.7
    (pytorch#196678). The backward pass follows the forward pass's choice, so it is enough to choose another kernel
    here. Without gradients nothing changes. The switch costs less than a microsecond.

    Example:
        ```
        with safe_gradients():
            states = encoder_layer(states, src_key_padding_mask=hidden)
        ```
    """
    if not (torch.is_grad_enabled() and torch.backends.cuda.cudnn_sdp_enabled()):
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """PyTorch's function of this name under `safe_gradients`; call this one wherever gradients may flow.

    Args:
        query: `(B, H, M, D)`.
        key: `(B, H, T, D)`.
        value: `(B, H, T, D)`.
        **options: as PyTorch's: `attn_mask`, `dropout_p`, `is_causal`, `scale`, `enable_gqa`.

    Returns:
        `(B, H, M, D)`.
    """
    with safe_gradients():
        attended: Tensor = functional.scaled_dot_product_attention(query, key, value, **options)
    return attended

"""Chooses the attention kernel of a training: the fastest one that computes its mask, or the one asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from latentwire.errors import UserError
from latentwire.lm.masks import attention

FASTEST = ("flex", "split")
"""In this order, on a GPU. `latentwire bench train` measures both."""
HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD, HEAD_MULTIPLE, NARROWEST_HEAD = 256, 8, 16
"""Head widths that the flash kernel takes, and the smallest that FlexAttention takes."""


@dataclass(frozen=True)
class Choice:
    """kernel: one of `attention.KERNELS`. because: the reason, as the end of a sentence."""

    kernel: str
    because: str

    def __str__(self) -> str:
        return f"attention: {self.kernel}, because {self.because}"


def choose(model: PreTrainedModel, wanted: str = "auto", *, dtype: torch.dtype) -> Choice:
    """The kernel that trains `model` on packed rows.

    Args:
        wanted: `auto`, or one of `attention.KERNELS`. dtype: in which attention computes, autocast included.

    Raises:
        UserError: the kernel asked for would not run, or would compute something else.
    """
    if wanted != "auto":
        attention.refuse(model, wanted)
        reason = forbids(model, wanted, dtype)
        if reason:
            raise UserError(f"attention: found {wanted}, expected auto or another kernel: {reason}.")
        return Choice(wanted, "it was asked for")
    own = attention.kernel(model)
    if model.device.type != "cuda":
        return Choice(own, f"the kernels made for packed rows need a GPU, not a {model.device.type}")
    if dtype not in HALF:
        return Choice(own, f"flash kernels compute in half precision, not in {_name(dtype)}")
    reasons: list[str] = []
    for name in FASTEST:
        reason = forbids(model, name, dtype)
        if not reason:
            return Choice(name, "; ".join([f"it is the fastest for {_name(dtype)} on a GPU", *reasons]))
        reasons.append(f"{name} is out ({reason})")
    return Choice(own, "; ".join(reasons))


def forbids(model: PreTrainedModel, name: str, dtype: torch.dtype) -> str:
    """Why a kernel must not train a model; empty if nothing forbids it."""
    if name not in FASTEST:
        return ""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    on_gpu = model.device.type == "cuda"
    if getattr(config, "attention_dropout", 0):
        return "the model drops attention weights, and this kernel cannot"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return "the model has attention sinks, which this kernel leaves out"
    if on_gpu and dtype not in HALF:
        return f"it computes in half precision, not in {_name(dtype)}"
    if name == "flex" and not on_gpu:
        return "FlexAttention has no backward pass on a CPU"
    if name == "flex" and width < NARROWEST_HEAD:
        return f"heads of width {width} are narrower than {NARROWEST_HEAD}"
    if name == "split" and getattr(config, "attn_logit_softcapping", None):
        return "the model soft-caps its attention scores, which flash kernels here do not"
    if name == "split" and on_gpu and (width > WIDEST_HEAD or width % HEAD_MULTIPLE):
        return f"heads of width {width} are none of the multiples of {HEAD_MULTIPLE} up to {WIDEST_HEAD}"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

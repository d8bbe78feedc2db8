"""Quantized checkpoints, and rounding to 4 or 8 bits while loading."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from latentwire.errors import UserError

DEQUANTIZED = ("fp8", "gguf")
"""Formats that are dequantized on loading, so that afterwards the model is a plain one."""


def method(config: PreTrainedConfig, spec: str) -> str | None:
    """The `quant_method` of a checkpoint, None for a plain one.

    Args:
        config: of the checkpoint.
        spec: the model's name, for the error message.

    Raises:
        UserError: the format needs bitsandbytes, which is not installed.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    if not isinstance(settings, dict):
        settings = settings.to_dict()
    name = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))
    if name == "None" and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        name = "bitsandbytes"
    if name.startswith("bitsandbytes") and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model: {spec} is quantized with bitsandbytes, which is not installed; "
            "expected it (pip install bitsandbytes) or a checkpoint that is not quantized."
        )
    return name


def rounding(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Settings of bitsandbytes for weights rounded to 4 bits (NF4) or 8 bits (int8), computing in `dtype`."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def refuse_rounding(bits: int, spec: str, quantization: str | None, device: str, adapter: object) -> None:
    """Raise a `UserError` where the weights of a model cannot be rounded to `bits` while they are loaded."""
    if quantization is not None or adapter is not None:
        what = f"{quantization} weights" if quantization else "an adapter"
        raise UserError(f"bits: found {bits} for {spec} with {what}, expected a plain checkpoint.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"bits: found {bits} for {spec}, and bitsandbytes is not installed; "
            "expected it (pip install bitsandbytes)."
        )
    if not torch.cuda.is_available() or device == "cpu":
        raise UserError(f"bits: found {bits} for {spec} on a CPU, expected a GPU.")


def forget(model: Any, dtype: torch.dtype) -> None:
    """Make a dequantized model a plain one for its configuration, for PEFT and for `save_pretrained`."""
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    for name, parameter in model.named_parameters():
        # The converter of FP8 weights leaves those without a scale in the dtype of the file.
        if parameter.dtype != dtype and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)
    vars(model.config).pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    vars(model).pop("quantization_method", None)
    model.is_quantized = False
    # Undoing the conversions on saving would quantize what is no longer quantized; see `saving.save`.
    model._weight_conversions = None

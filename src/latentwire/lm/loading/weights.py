"""Models from disk and hub as people have them: plain, FP8, GGUF, image-text, with an adapter."""

from __future__ import annotations

import importlib.util
import textwrap
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from latentwire import models
from latentwire.errors import UserError
from latentwire.lm.loading import adapter_files, aligned_memory, checkpoint_headers, merging, text_side
from latentwire.lm.loading.saving import FORMAT_FILE, restore, save
from latentwire.lm.prompt_format import PromptFormat

__all__ = ["FORMAT_FILE", "Loaded", "load", "locate", "restore", "save"]

DeviceMap = str | dict[str, int | str]
_DEQUANTIZED = ("fp8", "gguf")
"""Quantizations that are undone on loading, so that afterwards the model is a plain one."""


@dataclass(frozen=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    saved_format: PromptFormat | None

    @property
    def prompt_format(self) -> PromptFormat:
        """The format saved beside weights or adapter, the default one where there is none."""
        return self.saved_format or PromptFormat()


def locate(spec: str) -> str:
    """The local folder, `.gguf` file or hub id that `spec` names.

    Raises:
        UserError: an embedded model that does not exist, or a path without a model in it.
    """
    if spec.startswith("embedded:"):
        return str(models.folder(spec.removeprefix("embedded:")))
    path = Path(spec)
    looks_local = path.exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1
    if not looks_local:
        return spec
    if path.is_file() and path.suffix == ".gguf":
        return spec
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise UserError(
            f"model: found {found} at {path}, expected a folder with a Hugging Face model or a .gguf file."
        )
    if not (path / "config.json").exists():
        raise UserError(f"model: found no config.json in {path}, expected a folder with a Hugging Face model.")
    return spec


@dataclass(frozen=True)
class Described:
    """A model before its weights are read. options: what else Transformers needs to read from `source`."""

    source: str
    options: dict[str, Any]
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def saved_format(self) -> PromptFormat | None:
        """The prompt format saved beside the model, None where there is none."""
        return None if self.options else _stored_format(self.source)

    @property
    def format(self) -> PromptFormat:
        """`saved_format`, or the default one."""
        return self.saved_format or PromptFormat()


def described(spec: str) -> Described:
    """Configuration and tokenizer of a model.

    Raises:
        UserError: there is no such model, or its tokenizer is of no use.
    """
    source = locate(spec)
    options: dict[str, Any] = {}
    if source.endswith(".gguf") and Path(source).is_file():
        options["gguf_file"], source = Path(source).name, str(Path(source).parent)
    try:
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # many libraries' code, many classes, one meaning: these files are no model
        raise UserError(f"model: {spec} cannot be loaded: {_told(error)}") from error
    if len(tokenizer) < 2 or not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise UserError(f"model: found no usable tokenizer in {spec}, expected tokenizer.json beside the weights.")
    return Described(source, options, config, tokenizer)


def load(
    spec: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    adapter: str | PathLike[str] | None = None,
    bits: Literal[4] | None = None,
) -> Loaded:
    """Load and verify a model; see `LM.load`. An adapter that is no LoRA is left to the caller."""
    if device is not None and device_map is not None:
        raise UserError("device_map: found a device beside it, expected one of the two.")
    merged = adapter is not None and adapter_files.kind(adapter) == adapter_files.LORA
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    found = described(spec)
    source, options, config, tokenizer = found.source, dict(found.options), found.config, found.tokenizer
    quantization, auto = "gguf" if options else _quantization(config, spec), text_side.auto_class(config)
    if quantization == "fp8":
        config.quantization_config["dequantize"] = True
        options["config"] = config
    elif quantization not in (None, "gguf") and device_map is None:
        device_map = {"": device}  # packed weights cannot be moved once they are loaded
    elif quantization is None and device_map is None and adapter is None and auto is AutoModelForCausalLM:
        device_map = _straight(torch.device(device))
    if bits is not None:
        _refuse_rounding(spec, quantization, device, adapter)
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        device_map = device_map or {"": device}
    if device_map is not None:
        options["device_map"] = device_map
    model = _read(auto, source, spec, dtype, options, quantization)
    if adapter is not None and merged:
        model = merging.merge(model, adapter)
    if device_map is None:
        model.to(torch.device(device))  # type: ignore[arg-type]
    aligned_memory.align(model, spec)
    saved_format = found.saved_format
    if adapter is not None and (Path(adapter) / FORMAT_FILE).exists():
        saved_format = _stored_format(str(adapter))  # how it was trained
    return Loaded(model.eval(), tokenizer, saved_format)


def _straight(device: torch.device) -> DeviceMap | None:
    """Weights from their files to an accelerator, without a copy on the host between; None for a CPU."""
    if device.type == "cpu":
        return None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return {"": str(device)}


def _quantization(config: PreTrainedConfig, spec: str) -> str | None:
    """The `quant_method` of a checkpoint, None for a plain one.

    Raises:
        UserError: it needs a package that is not installed.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    if not isinstance(found, dict):
        found = found.to_dict()
    method = str(getattr(found.get("quant_method"), "value", found.get("quant_method")))
    if method == "None" and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"
    if method.startswith("bitsandbytes") and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model: {spec} is quantized with bitsandbytes, which is not installed; "
            "expected it (pip install bitsandbytes) or a checkpoint that is not quantized."
        )
    return method


def _refuse_rounding(spec: str, quantization: str | None, device: str, adapter: object) -> None:
    """Raise a UserError where a model's weights cannot be rounded to 4 bits as they are loaded."""
    if quantization is not None or adapter is not None:
        found = f"{quantization} weights" if quantization else "an adapter"
        raise UserError(f"bits: found 4 for {spec} with {found}, expected a plain checkpoint.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"bits: found 4 for {spec}, and bitsandbytes is not installed; expected it (pip install bitsandbytes)."
        )
    if not torch.cuda.is_available() or device == "cpu":
        raise UserError(f"bits: found 4 for {spec} on a CPU, expected a GPU.")


def _read(
    auto: Any, source: str, spec: str, dtype: torch.dtype, options: dict[str, Any], quantization: str | None
) -> PreTrainedModel:
    """The causal language model of a checkpoint, every tensor of it in its place and none left over."""
    local = Path(source).is_dir()
    if local and quantization != "gguf":
        checkpoint_headers.check(Path(source), quantization)
    try:
        found: tuple[PreTrainedModel, dict[str, Any]] = auto.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise UserError(f"model: {spec} cannot be loaded: {_told(error)}") from error
    model, info = found
    if not local and (config := cached_file(source, "config.json")):
        checkpoint_headers.check(Path(config).parent, quantization)
    for what, names in (("lacks", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if names:
            raise UserError(f"weights: {spec} {what} {len(names)} tensor(s) such as {sorted(names)[0]}.")
    for name, found_shape, shape in info["mismatched_keys"]:
        raise UserError(f"weights: {name} of {spec} has shape {list(found_shape)}, expected {list(shape)}.")
    if quantization in _DEQUANTIZED:
        _forget_quantization(model, dtype)
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UserError(f"device_map: {spec} does not fit into memory with it, expected room for every tensor.")
    return model if auto is AutoModelForCausalLM else text_side.take(model.eval())


def _forget_quantization(model: Any, dtype: torch.dtype) -> None:
    """Make a dequantized model a plain one for all who ask: its configuration, PEFT, `save_pretrained`."""
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    for name, parameter in model.named_parameters():
        # The converter of FP8 weights leaves those that have no scale in the dtype of the file.
        if parameter.dtype != dtype and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)
    vars(model.config).pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)
    vars(model).pop("quantization_method", None)
    model.is_quantized = False
    # Undoing the conversions on saving would quantize what is no longer quantized; see `saving.save`.
    model._weight_conversions = None


def _stored_format(source: str) -> PromptFormat | None:
    if Path(source).is_dir():
        found = Path(source) / FORMAT_FILE
        path = str(found) if found.exists() else None
    else:
        path = cached_file(source, FORMAT_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    try:
        return PromptFormat.model_validate_json(Path(path).read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise UserError(f"format: {path} holds a wrong value: {where}: {first['msg']}.") from error


def _told(error: Exception) -> str:
    """The first line of an error's text, or all of it in short where that line only announces the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return textwrap.shorten(" ".join(lines) if lines[0].endswith(":") else lines[0], 300, placeholder=" ...")

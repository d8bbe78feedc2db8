"""Models from disk and hub as people have them: plain, FP8, GGUF, image-text, with an adapter."""

from __future__ import annotations

import textwrap
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from latentwire.errors import UserError
from latentwire.lm.loading import (
    adapter_files,
    aligned_memory,
    checkpoint_headers,
    gguf_files,
    gguf_tokenizer,
    merging,
    quantization,
    text_side,
    tokenizer_files,
)
from latentwire.lm.loading.load_settings import DeviceMap, Loading
from latentwire.lm.loading.model_sources import adapter_beside, locate, split_revision
from latentwire.lm.loading.saving import FORMAT_FILE, TRAINED, restore, save
from latentwire.lm.prompt_format import PromptFormat

__all__ = ["FORMAT_FILE", "LoadedModel", "load", "locate", "restore", "save"]

_STOCK_ATTENTION = (None, "sdpa", "eager", "flex_attention")


class _StoredFormat(PromptFormat):
    """`FORMAT_FILE`: the format, and whether the weights beside it were trained with it."""

    trained: bool = True


@dataclass(frozen=True)
class LoadedModel:
    """A verified model in evaluation mode, with its tokenizer and its prompt format."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    saved_format: PromptFormat | None
    trained: bool = True

    @property
    def trained_format(self) -> PromptFormat | None:
        """The saved format, if the weights were trained with it."""
        return self.saved_format if self.trained else None

    @property
    def prompt_format(self) -> PromptFormat:
        """The format saved beside weights or adapter, the default one where there is none."""
        return self.saved_format or PromptFormat()


@dataclass(frozen=True)
class Described:
    """A model before its weights are read.

    Attributes:
        source: the folder or hub id to read from.
        options: further arguments that Transformers needs to read from `source`.
        config: the model's configuration.
        tokenizer: the model's tokenizer.
    """

    source: str
    options: dict[str, Any]
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def is_gguf(self) -> bool:
        """Whether configuration, tokenizer and weights come from one `.gguf` file."""
        return "gguf_file" in self.options

    @property
    def saved_format(self) -> PromptFormat | None:
        """The prompt format saved beside the model, None where there is none."""
        return self.stored_format[0]

    @property
    def stored_format(self) -> tuple[PromptFormat | None, bool]:
        """`saved_format`, and whether the weights were trained with it."""
        return (None, False) if self.is_gguf else _stored_format(self.source, self.options.get("revision"))

    @property
    def format(self) -> PromptFormat:
        """`saved_format`, or the default one."""
        return self.saved_format or PromptFormat()


def described(spec: str, loading: Loading | None = None) -> Described:
    """Read the configuration and the tokenizer of a model, but not its weights.

    Args:
        spec: `embedded:NAME`, a local folder, a `.gguf` file, a hub id or `ID@REVISION`.
        loading: its `revision` and `trust_remote_code` count.

    Raises:
        UserError: there is no such model, its code is not trusted, or its tokenizer is unusable.
    """
    loading = loading or Loading()
    source, options = _source(spec, loading)
    try:
        with _gguf(source, options) as gguf_reader:
            config = AutoConfig.from_pretrained(source, **options)
            tokenizer: PreTrainedTokenizerBase
            if gguf_reader is None:
                tokenizer = tokenizer_files.read(source, **options)
            else:
                tokenizer = gguf_tokenizer.read(gguf_reader, spec, Path(source))
    except UserError:
        raise
    except Exception as error:  # many libraries, many classes of errors, one meaning: these files are no model
        raise _not_loaded(spec, source, error) from error
    if getattr(config, "_attn_implementation", None) not in _STOCK_ATTENTION:
        # Our attention functions replace it, and loading a kernel that a configuration names would run its code.
        config._attn_implementation = None
    if len(tokenizer) < 2 or not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise UserError(f"model: found no usable tokenizer in {spec}, expected tokenizer.json beside the weights.")
    return Described(source, options, config, tokenizer)


def load(
    spec: str,
    loading: Loading | None = None,
    *,
    device: str | None = None,
    adapter: str | PathLike[str] | None = None,
) -> LoadedModel:
    """Load and verify a model; see `LM.load`. A prefix-tuning adapter is left to the caller.

    Args:
        spec: `embedded:NAME`, a local folder, a `.gguf` file, a hub id or `ID@REVISION`.
        loading: precision, devices, bits, revision.
        device: where the model goes without a device map.
        adapter: the folder of a PEFT adapter; LoRA is merged.

    Raises:
        UserError: the model cannot be loaded as asked; one sentence says why.
    """
    loading = loading or Loading()
    source, options = _source(spec, loading)
    with _gguf(source, options):
        return _load(spec, loading, device, adapter)


def _load(spec: str, loading: Loading, device: str | None, adapter: str | PathLike[str] | None) -> LoadedModel:
    placed = loading.device_map is not None or loading.max_memory is not None
    if device is not None and placed:
        raise UserError("device_map: found a device beside it, expected one of the two.")
    merged = adapter is not None and adapter_files.kind(adapter) == adapter_files.LORA
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = loading.torch_dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    files = described(spec, loading)
    options, config = {**files.options, "config": files.config}, files.config
    quantized = "gguf" if files.is_gguf else quantization.method(config, spec)
    auto, device_map = text_side.auto_class(config), loading.device_map or ("auto" if placed else None)
    if quantized == "fp8":
        config.quantization_config["dequantize"] = True
    elif quantized not in (None, "gguf") and device_map is None:
        device_map = {"": device}  # packed weights cannot be moved once they are loaded
    elif quantized is None and device_map is None and adapter is None and auto is AutoModelForCausalLM:
        device_map = _straight_to(torch.device(device))
    if loading.bits is not None:
        quantization.refuse_rounding(loading.bits, spec, quantized, device, adapter)
        options["quantization_config"] = quantization.rounding(loading.bits, dtype)
        device_map = device_map or {"": device}
    if device_map is not None:
        options["device_map"] = device_map
    if loading.max_memory is not None:
        options["max_memory"] = loading.memory_by_device()
    _refuse_other_kinds(config, spec)
    model = _read(auto, files.source, spec, dtype, options, quantized)
    if adapter is not None and merged:
        model = merging.merge(model, adapter)
    if device_map is None:
        model.to(torch.device(device))  # type: ignore[arg-type]
    aligned_memory.align(model, spec)
    tokenizer, (saved_format, trained) = files.tokenizer, files.stored_format
    if adapter is not None:
        rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index,arg-type]
        trusted = loading.trust_remote_code
        tokenizer = adapter_files.tokenizer(adapter, tokenizer, rows, trust_remote_code=trusted)
    if adapter is not None and (Path(adapter) / FORMAT_FILE).exists():
        saved_format, trained = _stored_format(str(adapter), None)  # the one that the adapter was trained with
    return LoadedModel(model.eval(), tokenizer, saved_format, trained)


def _refuse_other_kinds(config: Any, spec: str) -> None:
    """Raise a `UserError` for a model that is known to be no decoder before its weights are read."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model: found an encoder-decoder ({kind}) in {spec}, expected a decoder-only language model."
        )
    names = getattr(config, "architectures", None) or []
    if any(str(name).endswith(("ForMaskedLM", "ForPreTraining")) for name in names):
        raise UserError(
            f"model: found an encoder ({names[0]}) in {spec}, expected a decoder-only language model; "
            "an encoder sees the tokens that it would have to predict."
        )


def _source(spec: str, loading: Loading) -> tuple[str, dict[str, Any]]:
    """Where Transformers reads a model from, and with which arguments."""
    spec, revision = split_revision(spec)
    source = locate(spec)
    if revision and loading.revision not in (None, revision):
        raise UserError(f"revision: found {loading.revision} beside {spec}@{revision}, expected one of the two.")
    revision = revision or loading.revision
    if revision and Path(source).exists():
        raise UserError(f"revision: found {revision} for {spec}, which is a local model; expected a hub id.")
    options: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    if revision:
        options["revision"] = revision
    if source.endswith(".gguf") and Path(source).is_file():
        options["gguf_file"], source = Path(source).name, str(Path(source).parent)
    return source, options


def _gguf(source: str, options: dict[str, Any]) -> AbstractContextManager[Any]:
    """A block in which a `.gguf` file is parsed once; it gives the file's reader, None for another model."""
    if "gguf_file" not in options:
        return nullcontext()
    gguf_files.require()
    return gguf_files.parsed_once(Path(source) / options["gguf_file"])


def _not_loaded(spec: str, source: str, error: Exception) -> UserError:
    """The sentence for a model whose configuration or tokenizer cannot be read."""
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return UserError(
            f"model: {spec} comes with Python code of its own, which is not run unless you ask for it; "
            "read that code, then add --trust-remote-code, or take a model that Transformers knows."
        )
    if not Path(source).exists() and (file := _cached(source, adapter_files.CONFIG)) is not None:
        base = adapter_files.base_model(file.parent) or "MODEL"
        return UserError(
            f"model: found only an adapter in {spec}, expected a whole model; "
            f"download the adapter and write --model {base} --adapter FOLDER."
        )
    return UserError(f"model: {spec} cannot be loaded: {_told(error)}")


def _cached(source: str, name: str) -> Path | None:
    """A file of a hub model, None where it has none or nothing can be asked."""
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def _straight_to(device: torch.device) -> DeviceMap | None:
    """A device map that reads weights from their files to an accelerator, with no host copy; None for a CPU."""
    if device.type == "cpu":
        return None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return {"": str(device)}


def _read(
    auto: Any, source: str, spec: str, dtype: torch.dtype, options: dict[str, Any], quantized: str | None
) -> PreTrainedModel:
    """The causal language model of a checkpoint, with every tensor in its place and none left over."""
    local = Path(source).is_dir()
    if local and quantized != "gguf":
        checkpoint_headers.check(Path(source), quantized)
    try:
        result: tuple[PreTrainedModel, dict[str, Any]] = auto.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise UserError(f"model: {spec} cannot be loaded: {_told(error)}") from error
    model, info = result
    if getattr(model, "_hf_peft_config_loaded", False):
        raise adapter_beside(spec)
    if not local and (config := cached_file(source, "config.json", revision=options.get("revision"))):
        checkpoint_headers.check(Path(config).parent, quantized)
    for what, names in (("lacks", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if names:
            raise UserError(f"weights: {spec} {what} {len(names)} tensor(s) such as {sorted(names)[0]}.")
    for name, found_shape, shape in info["mismatched_keys"]:
        raise UserError(f"weights: {name} of {spec} has shape {list(found_shape)}, expected {list(shape)}.")
    if quantized in quantization.DEQUANTIZED:
        quantization.forget(model, dtype)
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UserError(f"device_map: {spec} does not fit into memory with it, expected room for every tensor.")
    return model if auto is AutoModelForCausalLM else text_side.take(model.eval())


def _stored_format(source: str, revision: str | None) -> tuple[PromptFormat | None, bool]:
    """The prompt format that a folder or a hub id holds, if any, and whether the weights were trained with it."""
    if Path(source).is_dir():
        file = Path(source) / FORMAT_FILE
        path = str(file) if file.exists() else None
    else:
        path = cached_file(source, FORMAT_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None, False
    try:
        stored = _StoredFormat.model_validate_json(Path(path).read_text())
        return PromptFormat.model_validate(stored.model_dump(exclude={TRAINED})), stored.trained
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise UserError(f"format: {path} holds a wrong value: {where}: {first['msg']}.") from error


def _told(error: Exception) -> str:
    """The first line of an error's text, or all of it in short where that line only announces the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return textwrap.shorten(" ".join(lines) if lines[0].endswith(":") else lines[0], 300, placeholder=" ...")

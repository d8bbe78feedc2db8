"""Models from disk and hub, and back to disk, with nothing lost on the way."""

from __future__ import annotations

import copy
import json
import os
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from latentwire import models
from latentwire.errors import UserError
from latentwire.lm.prompt_format import PromptFormat

FORMAT_FILE = "prompt_format.json"


@dataclass(frozen=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat


def locate(spec: str) -> str:
    """The local folder or hub id that `spec` names.

    Raises:
        UserError: an embedded model that does not exist, or a path without a model in it.
    """
    if spec.startswith("embedded:"):
        return str(models.folder(spec.removeprefix("embedded:")))
    path = Path(spec)
    looks_local = path.exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1
    if not looks_local:
        return spec
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise UserError(f"model: found {found} at {path}, expected a folder with a Hugging Face model.")
    if not (path / "config.json").exists():
        raise UserError(f"model: found no config.json in {path}, expected a folder with a Hugging Face model.")
    return spec


def load(spec: str, *, dtype: torch.dtype | None = None, device: str | None = None) -> Loaded:
    """Load and verify a model; see `LM.load`."""
    source = locate(spec)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # many libraries' code, many classes, one meaning: these files are no model
        raise UserError(f"model: {spec} cannot be loaded: {_told(error)}") from error
    if len(tokenizer) < 2 or not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise UserError(f"model: found no usable tokenizer in {spec}, expected tokenizer.json beside the weights.")
    try:
        found: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )  # type: ignore[assignment]
    except Exception as error:
        raise UserError(f"model: {spec} cannot be loaded: {_told(error)}") from error
    model, info = found
    for what, names in (("lacks", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if names:
            raise UserError(f"weights: {spec} {what} {len(names)} tensor(s) such as {sorted(names)[0]}.")
    for name, found_shape, shape in info["mismatched_keys"]:
        raise UserError(f"weights: {name} of {spec} has shape {list(found_shape)}, expected {list(shape)}.")
    refuse_broken(model, spec)
    prompt_format = _stored_format(source)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return Loaded(model.eval(), tokenizer, prompt_format)


def _stored_format(source: str) -> PromptFormat:
    if Path(source).is_dir():
        found = Path(source) / FORMAT_FILE
        path = str(found) if found.exists() else None
    else:
        path = cached_file(source, FORMAT_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return PromptFormat()
    try:
        return PromptFormat.model_validate_json(Path(path).read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise UserError(f"format: {path} holds a wrong value: {where}: {first['msg']}.") from error


def refuse_broken(model: PreTrainedModel, spec: str) -> None:
    """Raise a UserError that names the first tensor with a value that is not a finite number."""
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"weights: {name} of {spec} holds NaN or infinity, expected finite numbers.")


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, folder: Path
) -> None:
    """Plain safetensors of the state dict, verified by reading them back, then put in place at once.

    `save_pretrained` of a model with weight conversions can write something else than the
    model (an FP8 checkpoint does so in Transformers 5.12 to 5.23), so the state dict is written as it is.

    Raises:
        RuntimeError: what was read back is not bit-equal, or a plain model has no place for it (an adapter
            that was not merged); nothing is left behind then, and what was in the folder is still there.
    """
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        state = {name: t for name, t in model.state_dict().items() if name not in tied}
        with torch.device("meta"):
            plain = type(model)(copy.deepcopy(model.config)).state_dict()
        if strange := state.keys() ^ (plain.keys() - tied):
            kind = type(model).__name__
            raise RuntimeError(f"{min(strange)} has no place in a plain {kind}; merge adapters first")
        save_torch_state_dict(state, partial)
        written = {name: t for file in partial.glob("*.safetensors") for name, t in load_file(file).items()}
        wrong = [n for n, t in state.items() if n not in written or not torch.equal(written[n], t.cpu())]
        if wrong:
            raise RuntimeError(f"{wrong[0]} did not come back from disk as it was written")
        model.config.save_pretrained(partial)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / FORMAT_FILE).write_text(json.dumps(prompt_format.model_dump(), indent=1) + "\n")
        # A kill between the two renames loses the name, never the weights.
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def restore(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights that `save` wrote into a model of the same shape.

    Raises:
        RuntimeError: a tensor is missing or strange.
    """
    written = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    state = {name: t for name, t in model.state_dict().items() if name not in tied}
    if state.keys() != written.keys():
        odd = sorted(state.keys() ^ written.keys())[0]
        raise RuntimeError(f"{folder} does not fit the model: {odd} is in one of them only")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(written[name])


def _told(error: Exception) -> str:
    """The first line of an error's text, or all of it in short where that line only announces the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return textwrap.shorten(" ".join(lines) if lines[0].endswith(":") else lines[0], 300, placeholder=" ...")

"""Models from disk and hub, and back to disk, with nothing lost on the way."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
        raise UserError(f"model: found {found} at {spec}, expected a folder with a Hugging Face model.")
    if not (path / "config.json").exists():
        raise UserError(f"model: found no config.json in {spec}, expected a folder with a Hugging Face model.")
    return spec


def load(spec: str, *, dtype: torch.dtype | None = None, device: str | None = None) -> Loaded:
    """Load and verify a model; see `LM.load`."""
    source = locate(spec)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model: {spec} cannot be loaded: {_first_line(error)}") from error
    if len(tokenizer) < 2 or not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise UserError(f"model: found no usable tokenizer in {spec}, expected tokenizer.json beside the weights.")
    try:
        found: tuple[PreTrainedModel, dict[str, set[str]]] = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )  # type: ignore[assignment]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model: {spec} cannot be loaded: {_first_line(error)}") from error
    model, info = found
    for what, names in (("lacks", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if names:
            raise UserError(f"weights: {spec} {what} {len(names)} tensor(s) such as {sorted(names)[0]}.")
    refuse_broken(model, spec)
    stored = Path(source) / FORMAT_FILE
    prompt_format = PromptFormat.model_validate_json(stored.read_text()) if stored.exists() else PromptFormat()
    model.to(torch.device(device))  # type: ignore[arg-type]
    return Loaded(model.eval(), tokenizer, prompt_format)


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
        RuntimeError: what was read back is not bit-equal; nothing is left behind then.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        state = {name: t for name, t in model.state_dict().items() if name not in tied}
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
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

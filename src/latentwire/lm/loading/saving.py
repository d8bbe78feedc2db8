"""Models to disk: a folder appears only once a model loaded from it gives the same tensors, tokens and logits."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.loading import reading_probe, tokenizer_files
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.loading.whole_folders import appearing
from latentwire.lm.prompt_format import PromptFormat

__all__ = ["FORMAT_FILE", "TRAINED", "appearing", "check_saveable", "restore", "save", "verify"]

FORMAT_FILE = "prompt_format.json"
TRAINED = "trained"
"""The field of `FORMAT_FILE` that is false where the weights were not trained with the format."""
_PROBE_ROWS, _PROBE_WIDTH = 2, 9
_TEXTS = ("The capital of France is Paris, and 1,234 people came.", "Question: where?\n\n  naïve 北京 \U0001f600")


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    folder: Path,
    *,
    trained: bool = True,
) -> None:
    """Write a model folder of plain safetensors, verify it against `model`, then put it in place at once.

    `save_pretrained` of a model with weight conversions can write something other than the model (an FP8
    checkpoint does so in Transformers 5.12 to 5.23), so the state dict is written as it is. Verifying needs the
    model once more in main memory, and nothing more on an accelerator.

    Args:
        model: a plain causal language model; adapters must have been merged.
        tokenizer: the model's tokenizer.
        prompt_format: how prompts are built for it.
        folder: the folder to create or to replace.
        trained: whether the weights were trained with this prompt format.

    Raises:
        RuntimeError: a weight is not finite or is still quantized, a tensor has no place in a plain model (an
            adapter that was not merged), or tensors, tokens or logits differ after reloading. Nothing is left of
            the new folder then, and what was in `folder` is still there.
    """
    with appearing(folder) as partial:
        config = _config(model)
        state = _stored(model)
        _refuse_strange(model, config, state)
        for name, tensor in state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise RuntimeError(f"{name} holds NaN or infinity")
        save_torch_state_dict(state, partial)
        written = {name: t for file in partial.glob("*.safetensors") for name, t in load_file(file).items()}
        wrong = [n for n, t in state.items() if n not in written or not torch.equal(written[n], t.cpu())]
        if wrong:
            raise RuntimeError(f"{wrong[0]} did not come back from disk as it was written")
        del written
        _write_small_parts(model, config, tokenizer, prompt_format, partial)
        if not trained:
            write_format(prompt_format, partial, trained=False)
        verify(model, partial)


def write_format(prompt_format: PromptFormat, folder: Path, *, trained: bool = True) -> None:
    """Write the file that says how prompts are built for the weights in a folder.

    Args:
        prompt_format: how prompts are built.
        folder: where the weights are.
        trained: whether they were trained with this format; if not, the file says so.
    """
    fields = prompt_format.model_dump() | ({} if trained else {TRAINED: False})
    (folder / FORMAT_FILE).write_text(json.dumps(fields, indent=1) + "\n")


def check_saveable(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat
) -> None:
    """Write everything but the weights into a temporary folder, and check that the weights have a place.

    Call it before the first step of a training: what cannot be saved must not be found out after the last one.

    Raises:
        UserError: configuration, generation configuration, tokenizer or the names of the weights would not reload
            as they are.

    Example:
        >>> check_saveable(lm.model, lm.tokenizer, lm.format)
    """
    config = _config(model)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _write_small_parts(model, config, tokenizer, prompt_format, Path(folder))
        _refuse_strange(model, config, _stored(model))
    except Exception as error:  # whatever a library says here, it would say after the last step of a training
        raise UserError(
            f"model: found a {type(model).__name__} that cannot be saved ({error}), "
            "expected one that reloads as it is written."
        ) from error


def restore(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights that `save` wrote into a model of the same shape.

    Raises:
        RuntimeError: a tensor is missing or has no place in the model.
    """
    written = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    state = _stored(model)
    if state.keys() != written.keys():
        odd = sorted(state.keys() ^ written.keys())[0]
        raise RuntimeError(f"{folder} does not fit the model: {odd} is in one of them only")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(written[name])


@torch.no_grad()
def verify(model: PreTrainedModel, folder: Path) -> None:
    """Load a fresh model from `folder`, and compare its tensors and its logits for a probe batch with `model`'s.

    The fresh model computes with `model`'s own tensors, once each of its own has been found equal to them: the
    same numbers at another alignment in memory may take another kernel and round otherwise.

    Raises:
        RuntimeError: a tensor or a logit is not bit-equal.
    """
    result: tuple[PreTrainedModel, dict[str, Any]] = type(model).from_pretrained(
        folder, dtype=model.dtype, use_safetensors=True, output_loading_info=True
    )  # type: ignore[assignment]
    fresh, info = result
    kind = type(fresh).__name__
    if odd := sorted([*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]], key=str):
        raise RuntimeError(f"{odd[0]} does not come back when {kind} is loaded from what was saved")
    ours, theirs = _tensors(model), _tensors(fresh)
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise RuntimeError(f"{odd[0]} is only in the model or only in {kind} loaded from its files")
    for name, tensor in ours.items():
        # A model that was cast has rounded what no file holds, such as the angles of its rotation.
        if not torch.equal(theirs[name].to(tensor.dtype), tensor.cpu()):
            raise RuntimeError(f"{name} of a model loaded from what was saved is not bit-equal")
    fresh.set_attn_implementation(model.config._attn_implementation)
    ids = torch.arange(_PROBE_ROWS * _PROBE_WIDTH, device=model.device).view(_PROBE_ROWS, _PROBE_WIDTH)
    ids = (5 * ids + 3) % model.get_input_embeddings().weight.shape[0]  # type: ignore[index,operator]
    call = {"input_ids": ids, "use_cache": False}
    with evaluating(model):
        want, again = model(**call).logits, model(**call).logits
        one_device = len({tensor.device for tensor in ours.values()}) == 1
        if one_device:
            got = functional_call(fresh.eval(), ours, (), call).logits
        else:  # nothing moves states from one accelerator to the next in the fresh model
            got = fresh.eval()(input_ids=ids.cpu(), use_cache=False).logits
    # Some kernels add up in another order each time; then closeness is all that can be asked.
    exact = one_device and torch.equal(want, again)
    if not (torch.equal(got, want) if exact else reading_probe.close(got, want)):
        raise RuntimeError(f"{kind} loaded from what was saved gives other logits on a probe batch")


def _config(model: PreTrainedModel) -> Any:
    """A copy of the model's configuration that says what its weights are, whatever file they once came from."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    config.architectures = [type(model).__name__]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        # Two different tensors under a flag that ties them, as after training the embeddings of a tied model.
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            if getattr(part, "tie_word_embeddings", False):
                part.tie_word_embeddings = False
    return config


def _write_small_parts(
    model: PreTrainedModel,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    folder: Path,
) -> None:
    """Write everything but the weights, and check that the tokenizer comes back."""
    config.save_pretrained(folder)
    if model.generation_config is not None:
        # Not `save_pretrained`, which refuses the sampling values that many published greedy models carry.
        model.generation_config.to_json_file(folder / "generation_config.json", use_diff=True)
    tokenizer.save_pretrained(folder)
    write_format(prompt_format, folder)
    again: PreTrainedTokenizerBase = tokenizer_files.read(folder, trust_remote_code=False)
    if (difference := _differs(tokenizer, again)) is not None:
        raise RuntimeError(f"the tokenizer read back from disk has {difference}")


def _differs(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> str | None:
    """In what the second of two tokenizers differs, None where it gives the same tokens."""
    if ours.get_vocab() != theirs.get_vocab():
        return "another vocabulary"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template"):
        if getattr(ours, name) != getattr(theirs, name):
            return f"another {name}: {getattr(theirs, name)!r} for {getattr(ours, name)!r}"
    for text in _TEXTS:
        for special in (True, False):
            first, second = (t(text, add_special_tokens=special)["input_ids"] for t in (ours, theirs))
            if first != second:
                return f"{len(second)} tokens for {len(first)} in {text!r}"
    return None


def _stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict with one name for each tensor: tied weights have a second name, which is left out."""
    state = model.state_dict()
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    second = {name for name, first in tied.items() if name in state and _same(state[name], state.get(first))}
    return {name: tensor for name, tensor in state.items() if name not in second}


def _same(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are one in memory."""
    return other is not None and (one.data_ptr(), one.shape, one.device) == (
        other.data_ptr(),
        other.shape,
        other.device,
    )


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and all buffers by name, also those that no state dict holds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _refuse_strange(model: PreTrainedModel, config: Any, state: dict[str, Tensor]) -> None:
    """Raise a `RuntimeError` for a tensor that a plain model has no place for, or that is still quantized."""
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(config))
        tied = set(getattr(plain, "all_tied_weights_keys", None) or {})
        names = {name for name in plain.state_dict() if name not in tied}
    if strange := state.keys() ^ names:
        kind = type(model).__name__
        raise RuntimeError(f"{min(strange)} has no place in a plain {kind}; merge adapters first")
    for name, tensor in state.items():
        if "float8" in str(tensor.dtype):
            raise RuntimeError(f"{name} is {tensor.dtype}, which means nothing without its scale")

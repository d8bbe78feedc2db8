"""Models to disk: a folder appears only once a fresh model made from it answers as the old one, bit for bit."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.lm.loading import reading_probe
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.prompt_format import PromptFormat

FORMAT_FILE = "prompt_format.json"
_PROBE_ROWS, _PROBE_WIDTH = 2, 9


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, folder: Path
) -> None:
    """Plain safetensors of the state dict, verified by a fresh model made from them, then put in place at once.

    `save_pretrained` of a model with weight conversions can write something else than the
    model (an FP8 checkpoint does so in Transformers 5.12 to 5.23), so the state dict is written as it is.
    It needs the model once more in main memory, and nothing more on an accelerator.

    Raises:
        RuntimeError: a weight is no finite number or still quantized, what was read back is not bit-equal, a plain
            model has no place for it (an adapter that was not merged), or a fresh model answers otherwise; nothing
            is left behind then, and what was in the folder is still there.
    """
    with appearing(folder) as partial:
        config = copy.deepcopy(model.config)
        # It speaks of the file that the weights once came from.
        vars(config).pop("quantization_config", None)
        state = _stored(model)
        _refuse_strange(model, config, state)
        save_torch_state_dict(state, partial)
        written = {name: t for file in partial.glob("*.safetensors") for name, t in load_file(file).items()}
        wrong = [n for n, t in state.items() if n not in written or not torch.equal(written[n], t.cpu())]
        if wrong:
            raise RuntimeError(f"{wrong[0]} did not come back from disk as it was written")
        del written
        config.architectures = [type(model).__name__]
        config.save_pretrained(partial)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / FORMAT_FILE).write_text(json.dumps(prompt_format.model_dump(), indent=1) + "\n")
        verify(model, partial)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` once the block has ended well.

    Otherwise nothing of it is left behind, and what was in `folder` is still there.
    """
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
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
    state = _stored(model)
    if state.keys() != written.keys():
        odd = sorted(state.keys() ^ written.keys())[0]
        raise RuntimeError(f"{folder} does not fit the model: {odd} is in one of them only")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(written[name])


@torch.no_grad()
def verify(model: PreTrainedModel, folder: Path) -> None:
    """Make a fresh model of `folder` and compare tensors and the logits of a probe batch with `model`'s.

    The fresh model computes with `model`'s own tensors, once each of its own has been found equal to them: the
    same numbers at another alignment in memory may take another kernel and round otherwise.

    Raises:
        RuntimeError: a tensor or a logit is not bit-equal.
    """
    found: tuple[PreTrainedModel, dict[str, Any]] = type(model).from_pretrained(
        folder, dtype=model.dtype, use_safetensors=True, output_loading_info=True
    )  # type: ignore[assignment]
    fresh, info = found
    if odd := sorted([*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]], key=str):
        raise RuntimeError(
            f"{odd[0]} does not come back when {type(fresh).__name__} is loaded from what was saved"
        )
    ours, theirs = _tensors(model), _tensors(fresh)
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise RuntimeError(
            f"{odd[0]} is only in the model or only in {type(fresh).__name__} loaded from its files"
        )
    for name, tensor in ours.items():
        # A cast model has rounded what no file holds, such as the angles of its rotation.
        if not torch.equal(theirs[name].to(tensor.dtype), tensor.cpu()):
            raise RuntimeError(f"{name} of a model loaded from what was saved is not bit-equal")
    fresh.set_attn_implementation(model.config._attn_implementation)
    ids = torch.arange(_PROBE_ROWS * _PROBE_WIDTH, device=model.device).view(_PROBE_ROWS, _PROBE_WIDTH)
    ids = (5 * ids + 3) % model.get_input_embeddings().weight.shape[0]  # type: ignore[index,operator]
    call = {"input_ids": ids, "use_cache": False}
    with evaluating(model):
        want, again = model(**call).logits, model(**call).logits
        alone = len({tensor.device for tensor in ours.values()}) == 1
        if alone:
            got = functional_call(fresh.eval(), ours, (), call).logits
        else:  # nothing moves states from one accelerator to the next in the fresh model
            got = fresh.eval()(input_ids=ids.cpu(), use_cache=False).logits
    # Some kernels add up in another order each time; then nothing stronger than closeness can be asked.
    equal = torch.equal(got, want) if alone and torch.equal(want, again) else reading_probe.close(got, want)
    if not equal:
        raise RuntimeError(
            f"{type(fresh).__name__} loaded from what was saved gives other logits on a probe batch"
        )


def _stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict without the names that tied weights have a second time."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return {name: t for name, t in model.state_dict().items() if name not in tied}


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and all buffers, those that no state dict holds included, by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _refuse_strange(model: PreTrainedModel, config: Any, state: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        plain = _stored(type(model)(copy.deepcopy(config))).keys()
    if strange := state.keys() ^ plain:
        kind = type(model).__name__
        raise RuntimeError(f"{min(strange)} has no place in a plain {kind}; merge adapters first")
    for name, tensor in state.items():
        if "float8" in str(tensor.dtype):
            raise RuntimeError(f"{name} is {tensor.dtype}, which means nothing without its scale")
        if not bool(torch.isfinite(tensor).all()):
            raise RuntimeError(f"{name} holds NaN or infinity")

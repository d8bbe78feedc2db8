"""A trained wire's messages as files: prompt embeddings, or keys and values, for contexts that are given.

`prompts/N.safetensors` holds `prompt_embeds` `(tokens, width)`: every row that the reader takes in, latents
first, then the question's own embeddings. `caches/N.safetensors` holds `keys.L` (rotated to their positions) and
`values.L`, `(heads, latents, width)` a layer L, `positions` `(latents,)`, and `input_ids` with `position_ids`
of what follows: the question. `index.jsonl` has a line for each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from latentwire.errors import UserError
from latentwire.exports.export_inputs import ExportLine, shown
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import CAUSAL
from latentwire.wires.latent.latent_wire import Latent, LatentWireBase

PROMPTS, CACHES, INDEX = "prompts", "caches", "index.jsonl"


@torch.no_grad()
def write(path: str, lm: LM, asked: Sequence[ExportLine], folder: Path) -> dict[str, Any]:
    """Write what a reader gets of contexts over a trained wire.

    Args:
        path: The wire: its folder, its run, `embedded:NAME` or a hub id.
        lm: The reader.
        asked: Contexts with their questions.
        folder: An empty folder.

    Returns:
        What `export.json` says of it.

    Raises:
        UserError: Another program could not read what this wire delivers, and why.
    """
    wire = Latent(path=path).bind(lm)
    if wire.reader(lm) is not lm:
        raise UserError(
            f"run: found a wire whose reader {lm.name} was trained with it, expected one with a frozen reader: no "
            "other program has the reader's new weights."
        )
    lines, contiguous, kind = [], True, ""
    for at, each in enumerate(asked):
        prefix = _delivered(wire, each, lm)
        kind = PROMPTS if prefix.memory is None else CACHES
        tensors = _embeddings(prefix) if prefix.memory is None else _memory(prefix, lm)
        name = f"{kind}/{at:06d}.safetensors"
        (folder / kind).mkdir(exist_ok=True)
        save_file(tensors, folder / name, {"reader": lm.name, "wire": path})
        places = tensors["position_ids"] if kind == PROMPTS else tensors["positions"]
        contiguous &= places.tolist() == list(range(len(places)))
        lines.append({"file": name, "latents": _latents(tensors), **shown(asked, at)})
    write_atomically(folder / INDEX, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {
        "kind": kind,
        "reader": lm.name,
        "wire": path,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "contiguous": contiguous,
        "remarks": _remarks(kind, contiguous),
    }


def dynamic_cache(file: Path, config: PretrainedConfig) -> tuple[DynamicCache, Tensor, Tensor]:
    """Keys and values of an exported file as Transformers' own cache, with the ids and positions that follow.

    Args:
        file: `caches/N.safetensors`.
        config: The reader's configuration.

    Example:
        >>> cache, ids, positions = dynamic_cache(Path("out/caches/000000.safetensors"), model.config)
        >>> model(input_ids=ids, position_ids=positions, past_key_values=cache).logits
    """
    tensors = load_file(file)
    cache = DynamicCache(config=config)
    for layer in range(config.get_text_config().num_hidden_layers):
        cache.update(tensors[f"keys.{layer}"][None], tensors[f"values.{layer}"][None], layer)
    return cache, tensors["input_ids"][None], tensors["position_ids"][None]


def _delivered(wire: LatentWireBase, asked: ExportLine, lm: LM) -> Prefix:
    prompts = [asked.prompt]
    prefix = wire.deliver(wire.send(prompts, lm), prompts, lm)
    if bool((prefix.columns.blocks[prefix.columns.valid] != CAUSAL).any()):
        raise UserError("run: found a wire whose tokens read ahead, expected one that is read causally.")
    return prefix


def _embeddings(prefix: Prefix) -> dict[str, Tensor]:
    assert prefix.embeddings is not None
    real = prefix.columns.valid[0]
    return {
        "prompt_embeds": prefix.embeddings[0][real].contiguous(),
        "position_ids": prefix.columns.positions[0][real].contiguous(),
    }


def _memory(prefix: Prefix, lm: LM) -> dict[str, Tensor]:
    memory = prefix.memory
    assert memory is not None
    if memory.heads:
        raise UserError(
            "run: found heads that keep different latents, expected the same for all: a cache has one length."
        )
    if prefix.ids is None:
        raise UserError(
            "run: found a wire that sends soft tokens beside keys and values, expected one of the two."
        )
    _check_windows(lm, int(prefix.next_position))
    rotated, real, own = lm.rotary.memory(memory), memory.columns.valid[0], prefix.columns.valid[0]
    tensors = {"positions": memory.columns.positions[0][real]}
    for layer, (keys, values) in enumerate(zip(rotated.keys, rotated.values, strict=True)):
        tensors |= {f"keys.{layer}": keys[0][:, real], f"values.{layer}": values[0][:, real]}
    tensors |= {"input_ids": prefix.ids[0][own], "position_ids": prefix.columns.positions[0][own]}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _check_windows(lm: LM, columns: int) -> None:
    """Refuse a prefix beyond a sliding window, which other programs count in slots and not in positions."""
    config = lm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if (
        window is not None
        and "sliding_attention" in (getattr(config, "layer_types", None) or ())
        and columns > window
    ):
        raise UserError(
            f"contexts: found one of {columns} positions for {lm.name}, whose window is {window}; expected less, "
            "since other programs count a window in slots and not in positions."
        )


def _latents(tensors: dict[str, Tensor]) -> int:
    return len(tensors["positions"] if "positions" in tensors else tensors["prompt_embeds"])


def _remarks(kind: str, contiguous: bool) -> list[str]:
    where = "vLLM's prompt embeddings" if kind == PROMPTS else "a key/value connector of vLLM"
    if contiguous:
        return [f"{where}: its rows stand at positions 0, 1, ..., as a server numbers them"]
    return [
        f"{where}: NOT servable, since its rows are spread over the source's positions and a server numbers them "
        "0, 1, ...; Transformers takes `position_ids`. A wire trained with `positions: contiguous` is servable."
    ]

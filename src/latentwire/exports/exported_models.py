"""A finetuned model as a folder that Transformers reads as it was trained, as far as Transformers can."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from latentwire import wires
from latentwire.files import write_atomically
from latentwire.wires.text_wire import PlainText

SCORING = (
    "generate() reads the prompt in both directions and writes causally, since a later step has one query; one "
    "forward pass over prompt and answer would read the answer in both directions too: score by a prefill of the "
    "prompt and a second pass over the answer, token by token or with is_causal=True"
)
NOT_WITHOUT_CACHE = (
    "generate(use_cache=False), prefill_chunk_size and assisted generation read answers ahead: do not use them"
)


def write(trained: Path, label: str, folder: Path) -> dict[str, Any]:
    """Copy a model folder, with the reading that it was trained with in its configuration where that is possible.

    Args:
        trained: A finetuning's checkpoint.
        label: The wire that it was finetuned over.
        folder: An empty folder.

    Returns:
        What `export.json` says of it.
    """
    for file in trained.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    config = AutoConfig.from_pretrained(trained, trust_remote_code=False)
    reason = _cannot(label, config)
    both = not reason and label != "text"
    if both:
        path = folder / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        write_atomically(path, json.dumps({**settings, "is_causal": False}, indent=2) + "\n")
    remarks = [SCORING, NOT_WITHOUT_CACHE] if both else [reason or "it was trained causally, and is read so"]
    return {"kind": "model", "wire": label, "reads": "bidirectional" if both else "causal", "remarks": remarks}


def _cannot(label: str, config: PretrainedConfig) -> str:
    """Why stock Transformers cannot read over a wire; empty where it can."""
    wire = wires.parse(label)
    plain = "it is written to be read causally; read it here, or with latentwire.blocks(model, lengths)"
    if not isinstance(wire, PlainText) or wire.mask == "segments":
        return f"Transformers has no setting for the wire {label}: {plain}"
    if wire.mask == "causal":
        return ""
    if wire.layers is not None:
        return f"Transformers reads all layers alike, and {label} only some of them in both directions: {plain}"
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) if kinds & {"sliding_attention"} or not kinds else None
    if window is not None and getattr(text, "use_sliding_window", True):
        return (
            f"the model has a sliding window of {window}, and in both directions Transformers has another one "
            f"than it was trained with: {plain}"
        )
    if kinds - {"full_attention", "sliding_attention"}:
        return f"the model has layers of kind {', '.join(sorted(kinds))}, not all of which attend: {plain}"
    return ""

"""A wire's training so small that a study of several takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.studies import model_folder

HERON, WREN = str(model_folder("llama", 2048)), str(model_folder("qwen3", 2048))
SOFT = {"kind": "embeddings", "hidden": 8}


def encoder(ratio: int = 4, **changes: Any) -> dict[str, Any]:
    return {"kind": "self", "rank": 2, "select": {"kind": "anchors", "ratio": ratio}, **changes}


def fit(source: str, encodes: dict[str, Any], adapters: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The raw stage that trains a wire for two steps. adapters: by reader."""
    return {
        "kind": "wire",
        "wire": {"source": source, "encoder": encodes, "adapters": adapters},
        "data": {"kind": "world", "tiers": ["one_hop"]},
        "contexts": 4,
        "passages": 2,
        "questions": 2,
        "steps": 2,
        "eval_steps": 2,
        "eval_samples": 2,
        "samples": 0,
        "warmup_steps": 0,
        **changes,
    }


def own_rows(folder: Path) -> dict[str, Any]:
    """Data from a file of 60 rows, of which a few are kept for evaluation."""
    names = [f"Mira{at}" for at in range(60)]
    rows = [
        {"context": f"{name} lives in Tarn.", "question": f"Where does {name} live?", "answers": ["Tarn"]}
        for name in names
    ]
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "task", "task": "jsonl", "data": str(path)}


A = fit(HERON, encoder(gives="vectors"), {HERON: SOFT})

EMBEDDED = "embedded:wren"
FIT = fit(EMBEDDED, encoder(), {EMBEDDED: {"kind": "native"}})
STUDY: dict[str, Any] = {
    "name": "wired",
    "model": EMBEDDED,
    "tasks": ["one_hop"],
    "limit": 40,
    "stages": {
        "baseline": {"kind": "evaluate", "arms": {"text": "text", "none": "none", "nth": "nth,ratio=4"}},
        "fit": FIT,
        "latent": {
            "kind": "evaluate",
            "arms": {"latent": "stage:fit", "deranged": "stage:fit:deranged", "4bit": "stage:fit:4bit"},
        },
    },
    "effects": {"baseline": "baseline/text", "retained": ["latent/latent", "baseline/nth"]},
    "comparisons": [{"name": "against nth", "a": "latent/latent", "b": "baseline/nth"}],
}
"""One wire of a model that can read, so that there are numbers to compare."""

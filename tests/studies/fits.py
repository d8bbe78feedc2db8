"""A wire's training so small that a study of several takes seconds."""

from __future__ import annotations

from typing import Any

from tests.studies.study import model_folder

HERON, WREN = str(model_folder("llama", 2048)), str(model_folder("qwen3", 2048))
ENCODER = {"kind": "self", "rank": 2, "gives": "vectors", "select": {"kind": "anchors", "ratio": 4}}
SOFT = {"kind": "embeddings", "hidden": 8}
A: dict[str, Any] = {
    "kind": "wire",
    "wire": {"source": HERON, "encoder": ENCODER, "adapters": {HERON: SOFT}},
    "data": {"kind": "world", "tiers": ["one_hop"]},
    "contexts": 4,
    "passages": 2,
    "questions": 2,
    "steps": 2,
    "eval_steps": 2,
    "eval_samples": 2,
    "samples": 0,
    "warmup_steps": 0,
}

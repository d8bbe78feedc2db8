"""A tiny Llama that reads and a tiny Qwen3 that is told, with tokenizers that cut text in other places."""

from __future__ import annotations

from pathlib import Path

import torch

from latentwire.lm.model import LM
from latentwire.wires.latent.adapters import (
    AdapterKind,
    BothConfig,
    DeepPrefixConfig,
    EmbeddingsConfig,
    ProjectedConfig,
)
from latentwire.wires.latent.encoders.source import SourceConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import Anchors
from latentwire.wires.latent.translators import CrossConfig, DitConfig, MlpConfig
from tests.support.latent_wires import shaken
from tests.support.models import tiny_model, tiny_tokenizer

CONTEXTS = ["Ada lives in the old town by the river.", "The heron stood.", "one two three four\n  five ünd six"]
LONG = {"max_position_embeddings": 2048}

SMALL = DitConfig(hidden=16, layers=2, heads=2, steps_train=2, steps=3)
TRANSLATORS = {
    "cross": CrossConfig(layers=1, heads=2, gate=0.1),
    "mlp": MlpConfig(hidden=12),
    "dit": SMALL,
    "dit-attention-guided": SMALL.model_copy(update={"pool": "attention", "guidance": 2.0}),
    "dit-pooled": SMALL.model_copy(update={"pooled_only": True}),
}
ADAPTERS: dict[str, AdapterKind] = {
    "embeddings": EmbeddingsConfig(hidden=12),
    "deep_prefix": DeepPrefixConfig(hidden=12),
    "both": BothConfig(embeddings=EmbeddingsConfig(hidden=12), prefix=DeepPrefixConfig(hidden=12)),
    "projected": ProjectedConfig(),
}


def source_lm(**changes: object) -> LM:
    """Its tokens run across words, after a BOS."""
    model = tiny_model("llama", **LONG, num_hidden_layers=4, **changes)
    return LM(model, tiny_tokenizer(bos=True, merge_blanks=True), name="source")


def reader_lm(**changes: object) -> LM:
    """Another family, shape and tokenizer."""
    model = tiny_model("qwen3", seed=1, **LONG, hidden_size=24, num_key_value_heads=1, **changes)
    return LM(model, tiny_tokenizer(), name="reader")


def saved(lm: LM, folder: Path) -> LM:
    """The same model under the name of a folder, where `align` finds its tokenizer."""
    lm.name = str(folder / lm.name)
    lm.save(Path(lm.name))
    return lm


def encoder(**changes: object) -> SourceConfig:
    return SourceConfig(**{"width": 16, "select": Anchors(ratio=3), "translator": TRANSLATORS["mlp"], **changes})


def bridge(
    source: LM, reader: LM, adapter: str = "deep_prefix", *, shake: bool = True, **changes: object
) -> LatentModules:
    """A bridge with every piece away from where it began, where much is zero and nothing would be noticed."""
    torch.manual_seed(0)
    config = LatentConfig(
        source=source.name, encoder=encoder(**changes), adapters={reader.name: ADAPTERS[adapter]}
    )
    modules = LatentModules(config, {reader.name: reader}, source)
    return shaken(modules) if shake else modules.eval()

"""A tiny source and tiny targets of other families, with other tokenizers, in folders of their own."""

from __future__ import annotations

from pathlib import Path

import torch

from latentwire.lm.model import LM
from latentwire.lm.prompts import Example, Prompt
from latentwire.tasks.base import Task
from latentwire.wires.latent.adapters import FuseConfig
from latentwire.wires.latent.encoders.source import SourceConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import Anchors
from latentwire.wires.latent.translators import CrossConfig
from tests.support.models import tiny_model, tiny_tokenizer

PROMPTS = [
    Prompt(context="Ada lives in the old town by the river.", question="Where does Ada live?"),
    Prompt(context="The heron stood.", question="Who stood in the shallow water, and for how long?"),
    Prompt(context="one two three four five six seven eight", question="What?"),
]
EXAMPLES = [
    Example(
        id=f"e/{n}",
        group=f"g/{n}",
        context=f"{name} lives in {town} by the river.",
        question=f"Where does {name} live?",
        answers=(town,),
    )
    for n, (name, town) in enumerate([("Ada", "Rome"), ("Bob", "Oslo"), ("Eve", "Bern"), ("Max", "Lima")])
]
TASK = Task(name="towns", answer="span", source=lambda split: iter(EXAMPLES), max_new_tokens=6)
POSITIONS = {"max_position_embeddings": 2048}


def stored(folder: Path, family: str, **tokenizer: bool) -> LM:
    """A model that knows its folder by name, so that another can align to its tokens.

    A sliding window is shorter than texts here and reaches them from after a question.
    """
    window = {"sliding_window": 12} if family == "mistral" else {}
    model, cut = tiny_model(family, **POSITIONS, **window), tiny_tokenizer(**tokenizer)
    model.save_pretrained(folder)
    cut.save_pretrained(folder)
    return LM(model, cut, name=str(folder))


def source() -> LM:
    return LM(
        tiny_model("qwen3", seed=7, num_hidden_layers=2, **POSITIONS), tiny_tokenizer(bos=True), name="source"
    )


def translated(**changes: object) -> SourceConfig:
    """Vectors of hidden states, a latent for every three tokens."""
    options = {"select": Anchors(ratio=3), "width": 16, "translator": CrossConfig(layers=1, heads=2, gate=0.5)}
    return SourceConfig(**{**options, **changes})


def fused_config(lm: LM, **changes: object) -> LatentConfig:
    encoder = SourceConfig(states="keys", align=lm.name, select=Anchors(ratio=1), translator=None)
    adapter = FuseConfig(hidden=8, **changes)
    return LatentConfig(source="source", encoder=encoder, layout="text", adapters={lm.name: adapter})


def modules_of(config: LatentConfig, lm: LM) -> LatentModules:
    torch.manual_seed(0)
    return LatentModules(config, {lm.name: lm}, source()).eval()


def bound(modules: LatentModules, lm: LM, control: str | None = None) -> Latent:
    wire = Latent(path="bridge", control=control)
    wire._modules, wire._reader = modules, lm.name
    return wire

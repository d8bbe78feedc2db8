"""A wire small enough to be trained in a second, and everything a single step of it computes."""

import json

import torch
from safetensors.torch import load_file

from latentwire.lm.loading.lora import Lora
from latentwire.training.data.world import WorldPassages
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.wire.part import collate
from latentwire.training.wire.passages import passages
from latentwire.training.wire.teacher import Teacher
from latentwire.training.wire.train import train_wire
from latentwire.training.wire.wire_step import WireStep
from latentwire.training.wire.wire_training_config import TextSteps, WireTraining
from latentwire.wires.latent.adapters import EmbeddingsConfig, NativeConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.modules import LatentConfig, LatentModules
from latentwire.wires.latent.select import Anchors
from tests.support.models import tiny_lm

SOFT = EmbeddingsConfig(hidden=8)
KEYS = NativeConfig()
ENCODER = SelfConfig(select=Anchors(ratio=4), rank=2)
DATA = WorldPassages()
STAGE_B = {
    "reader_lora": Lora(rank=2, dropout=0.1),
    "reader_prefix": 3,
    "text_steps": TextSteps(probability=0.8, tail=0.3, steps=4),
}


def start(family="llama", **changes):
    return tiny_lm(family, max_position_embeddings=2048, **changes)


def config(lm, adapter=KEYS, encoder=ENCODER):
    return LatentConfig(source=lm.name, encoder=encoder, adapters={lm.name: adapter})


def settings(lm, adapter=KEYS, **changes):
    return WireTraining(
        **{
            "wire": config(lm, adapter),
            "data": DATA,
            "steps": 6,
            "passages": 4,
            "questions": 2,
            "contexts": 8,
            "eval_samples": 2,
            "eval_steps": 2,
            "log_steps": 1,
            "samples": 0,
            "warmup_steps": 1,
            "learning_rate": 1e-2,
            **changes,
        }
    )


def run(folder, adapter=KEYS, begin=None, **changes):
    """A whole fit; returns what it came to, its reader, and what was said."""
    folder.mkdir(parents=True, exist_ok=True)
    lm = start()
    said = []
    found = train_wire({lm.name: lm}, lm, settings(lm, adapter, **changes), folder, start=begin, log=said.append)
    return found, lm, said


def one_step(adapter=KEYS, objectives=(), seed=0, lm=None, keep=1.0, textual=False, count=3, encoder=ENCODER):
    """Modules, step and part of a single step that nothing has been trained for."""
    lm = lm or start()
    torch.manual_seed(seed)
    modules = LatentModules(config(lm, adapter, encoder), {lm.name: lm}, lm)
    found = passages(DATA, {lm.name: lm}, "train", count)
    devices = {lm.name: lm.device}
    names = [f"0/0/{number}" for number in range(count)]
    part = collate(found, [range(2)] * count, devices, names, keep=keep, textual=textual)
    used = settings(lm, adapter, **({"objectives": objectives} if objectives else {})).objectives
    step = WireStep(modules, {lm.name: lm}, {lm.name: Teacher(lm, print)}, used, Adapting(used))
    return modules, step, part


def weights_of(folder, name="final"):
    return load_file(folder / "checkpoints" / name / "wire.safetensors")


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "diagnostics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "eval_seconds", "memory_gib")} for line in lines
    ]

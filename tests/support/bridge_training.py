"""Trainings of bridges of a second, and everything a single step of one computes."""

import torch

from latentwire.training.data.world import WorldPassages
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.wire.part import collate
from latentwire.training.wire.passages import passages
from latentwire.training.wire.teacher import Teacher
from latentwire.training.wire.train import train_wire
from latentwire.training.wire.wire_step import WireStep
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent.latent_config import LatentConfig
from tests.support.bridges import ADAPTERS, bridge, encoder, reader_lm, source_lm


def settings(source, reader, adapter="deep_prefix", *, wire=None, **changes):
    config = LatentConfig(
        source=source.name, encoder=encoder(**(wire or {})), adapters={reader.name: ADAPTERS[adapter]}
    )
    few = {"passages": 4, "questions": 2, "contexts": 8, "eval_samples": 2, "eval_steps": 3, "samples": 0}
    data = WorldPassages(tiers=("one_hop",))
    rate = {"steps": 3, "log_steps": 1, "warmup_steps": 0, "learning_rate": 1e-2}
    return WireTraining(**{"wire": config, "data": data, **few, **rate, **changes})


def train(folder, adapter="deep_prefix", *, begin=None, wire=None, **changes):
    """What a training came to, and what was said."""
    folder.mkdir(parents=True, exist_ok=True)
    source, reader, said = source_lm(), reader_lm(), []
    asked = settings(source, reader, adapter, wire=wire, **changes)
    return train_wire({reader.name: reader}, source, asked, folder, start=begin, log=said.append), said


def one_step(source, reader, objectives, adapter="both", *, count=3, **wire):
    """Modules, step and part of a single step that nothing has been trained for."""
    modules = bridge(source, reader, adapter, **wire).train()
    readers = {reader.name: reader}
    found = passages(WorldPassages(), readers, "train", count)
    names = [f"0/0/{number}" for number in range(count)]
    part = collate(found, [range(2)] * count, {reader.name: torch.device("cpu")}, names)
    step = WireStep(modules, readers, {reader.name: Teacher(reader, print)}, objectives, Adapting(objectives))
    return modules, step, part

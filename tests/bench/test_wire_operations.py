"""A training step of a wire launches no more operations than it is known to need."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from latentwire.bench import wire_operations, wire_train
from latentwire.bench.decode_timing import tokenizer
from latentwire.lm.model import LM
from latentwire.wires.latent.adapters import NativeConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.select import Anchors

LAYERS = 6
MOST = {
    "teacher": 43,
    "encoder": 58,
    "student": 46,
    "student, backward": 64,
    "encoder, backward": 92,
}
"""Operations a layer, of a model of Qwen2's shape with frozen 16-bit weights under autocast."""
BESIDE = 80
"""Operations of a pass that do not grow with the layers."""


def test_a_step_launches_few_operations_a_layer() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
    config = Qwen2Config(**sizes, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    lm = LM(model, tokenizer(), name="thin")
    encoder = SelfConfig(mask="causal", rank=8, select=Anchors(ratio=4))
    wire = LatentConfig(source=lm.name, encoder=encoder, adapters={lm.name: NativeConfig()})
    modules = LatentModules(wire, {lm.name: lm}, lm).train()
    part = wire_train.WireBatch(2, 32, questions=2, question=8, answer=4).part(lm)
    found = wire_operations.count(wire_train.step_of(lm, modules), part, "cpu")
    for name, most in MOST.items():
        beside = BESIDE if name != "teacher" else BESIDE / 2
        assert found[name].total <= most * LAYERS + beside, (name, found[name].launched.most_common(9))
    assert found["update"].total < 20  # however many parameters there are
    assert found["losses"].total < 60

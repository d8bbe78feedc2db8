"""The wire benchmark measures the template's wire, and counts what PyTorch counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentwire.bench import wire_costs, wire_first, wire_train
from latentwire.bench.decode import tokenizer
from latentwire.bench.setup import SHAPES, Setup, Shape
from latentwire.lm.model import LM
from latentwire.lm.operation_counts import Counts, causal
from latentwire.lm.prefix import Prefix
from latentwire.studies import loading

CPU = Setup(torch.device("cpu"), "nano")
SMALL = wire_train.WireBatch(2, 32, questions=3, question=5, answer=2)


@pytest.fixture(autouse=True)
def _nano(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    monkeypatch.setitem(SHAPES, "nano", Shape("llama", {**SHAPES["tiny"].config, **small}))
    monkeypatch.setattr(wire_first, "READ", {"cpu": wire_first.Read(64, 8, (4, 16))})
    monkeypatch.setattr(wire_train, "BATCHES", {"cpu": (SMALL,)})
    # The machine's ceilings say nothing here and take seconds to measure.
    monkeypatch.setattr(Setup, "flops", 1e9)
    monkeypatch.setattr(Setup, "bandwidth", 1e9)


def reader() -> LM:
    return LM(CPU.model().eval().requires_grad_(False), tokenizer(), name="nano")


def test_every_way_is_measured_beside_what_it_needs() -> None:
    rows = list(wire_costs.measure(CPU))
    assert [row.figures["seconds"] > 0 for row in rows] == [True] * len(rows), [row.note for row in rows]
    assert [row.at["latents"] for row in rows if row.who == "latents, cold"] == [4, 16]
    sent = {row.at["latents"]: row.figures["mib"] for row in rows if row.who == "latents at hand"}
    whole = next(row.figures["mib"] for row in rows if "keys and values at hand" in row.who)
    assert (sent[4] * 16, sent[16] * 4) == (pytest.approx(whole), pytest.approx(whole))
    assert {"floor: text", "transformers, text", "text", "training step", "teacher alone"} <= {r.who for r in rows}


def test_the_counts_of_a_pass_are_those_of_its_products() -> None:
    lm = reader()
    prefix = Prefix.of_tokens([list(range(5, 45))], device="cpu")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        lm.prefill(prefix)
    # Dense kernels compute every pair, seen or not.
    assert counted.get_total_flops() == pytest.approx(Counts.of(lm.model).read(40, 40 * 40, 1), rel=1e-3)
    assert causal(3) == 1 + 2 + 3
    assert causal(2, behind=10) == 11 + 12


def test_a_training_step_needs_no_more_than_it_computes() -> None:
    lm = reader()
    modules = wire_train.modules_of(lm, wire_train.RATIO).train()
    step, part = wire_train.step_of(lm, modules), SMALL.part(lm)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        losses = step(part)
        losses.total.backward()
    found, needed = counted.get_total_flops(), wire_train.needs_of(lm, SMALL).step
    assert 0.75 * found < needed < found


def test_the_batch_is_as_long_as_it_says() -> None:
    lm = reader()
    part = SMALL.part(lm)
    assert part.text["nano"].end.tolist() == [32, 32]
    assert part.labels == 2 * 3 * 2


def test_the_wire_is_the_templates() -> None:
    template = loading.load("latent-wire").stages["fit"].wire
    config = wire_train.modules_of(reader(), wire_train.RATIO).config
    assert config.encoder == template.encoder
    assert list(config.adapters.values()) == list(template.adapters.values())

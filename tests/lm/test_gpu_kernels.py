"""The compiled kernels themselves; skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from latentwire.lm.masks import flex
from latentwire.lm.masks import varlen_runs as split
from latentwire.lm.masks.kernel_choice import FASTEST
from latentwire.lm.model import LM
from tests.lm.test_kernels import FAMILIES, SHAPES, read, rows
from tests.support.models import tiny_model, tiny_tokenizer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}


@needs_gpu
@pytest.mark.parametrize("kernel", FASTEST)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu_in_half_precision(kernel: str, family: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As close to the dense mask in float32 as the dense mask in bfloat16 is."""
    ran = []
    module = {"flex": flex, "split": split}[kernel]
    monkeypatch.setattr(module, "attend", lambda *a, honest=module.attend, **k: ran.append(1) or honest(*a, **k))
    given = rows(shape, width=flex.MULTIPLE).to(torch.device("cuda"))
    found = {}
    for name, dtype in ((kernel, torch.bfloat16), ("sdpa", torch.bfloat16), ("eager", torch.float32)):
        lm = LM(tiny_model(family, **WIDE).to("cuda", dtype), tiny_tokenizer(), attention_kernel=name)
        found[name] = read(lm, given)
    assert ran

    def errors(name: str) -> list[float]:
        pairs = [(found[name][0], found["eager"][0])]
        pairs += [(found[name][1][key], wanted) for key, wanted in found["eager"][1].items()]
        return [float((a.float() - b).norm() / b.norm().clamp_min(1e-3)) for a, b in pairs]

    for ours, usual in zip(errors(kernel), errors("sdpa"), strict=True):
        assert ours < 2 * usual + 0.01


@needs_gpu
def test_on_a_gpu_another_packing_compiles_nothing_anew() -> None:
    from torch._dynamo.utils import counters

    lm = LM(tiny_model("llama", **WIDE).to("cuda", torch.bfloat16), tiny_tokenizer(), attention_kernel="flex")
    for n, shape in enumerate(["prefix", "causal", "some without a prompt", "conversations"]):
        read(lm, rows(shape, width=flex.MULTIPLE).to(torch.device("cuda")))
        if n == 0:
            before = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == before


@needs_gpu
@pytest.mark.parametrize("kernel", FASTEST)
def test_on_a_gpu_under_autocast(kernel: str) -> None:
    """Float32 weights, half-precision attention: rotations leave float32 queries beside half-precision values."""
    given = rows("prefix", width=flex.MULTIPLE).to(torch.device("cuda"))
    found = []
    for name in (kernel, "sdpa"):
        lm = LM(tiny_model("qwen3", **WIDE).to("cuda"), tiny_tokenizer(), attention_kernel=name)
        with torch.autocast("cuda", torch.bfloat16):
            found.append(read(lm, given)[0])
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.02

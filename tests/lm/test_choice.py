"""Which kernel trains a model: the fastest that is right, with the reason."""

from __future__ import annotations

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.masks import attention
from latentwire.lm.masks.kernel_choice import FASTEST, choose
from tests.support.models import tiny_lm, tiny_model


class _OnGpu:
    """A model as `choose` sees it, on a GPU that is not there."""

    def __init__(self, family: str, **changes: object) -> None:
        self.model = attention_ready(family, **changes)
        self.device = torch.device("cuda")

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


def attention_ready(family: str, **changes: object):
    model = tiny_model(family, **changes)
    attention.install(model, "eager")
    return model


@pytest.mark.parametrize(
    ("family", "changes", "dtype", "kernel", "because"),
    [
        ("llama", {"head_dim": 64}, torch.bfloat16, FASTEST[0], "the fastest for bfloat16 on a GPU"),
        ("llama", {"head_dim": 8}, torch.bfloat16, "split", "heads of width 8 are narrower than 16"),
        ("llama", {"head_dim": 64}, torch.float32, "eager", "half precision, not in float32"),
        ("llama", {"head_dim": 64, "attention_dropout": 0.1}, torch.bfloat16, "eager", "drops attention weights"),
        ("gemma2", {"head_dim": 64}, torch.bfloat16, "flex", "fastest"),
        ("gpt_oss", {"head_dim": 64}, torch.bfloat16, "eager", "attention sinks"),
        ("mistral", {"head_dim": 64}, torch.float16, FASTEST[0], "fastest"),
    ],
)
def test_the_fastest_kernel_that_is_right_is_chosen(family, changes, dtype, kernel, because) -> None:
    found = choose(_OnGpu(family, **changes), dtype=dtype)
    assert found.kernel == kernel
    assert because in str(found)


@pytest.mark.parametrize(
    ("family", "wanted", "reason"),
    [
        ("gemma2", "split", "soft-caps its attention scores"),
        ("gpt_oss", "split", "attention sinks"),
        ("llama", "flex", "FlexAttention has no backward pass on a CPU"),
        ("llama", "flash", "found 'flash', expected sdpa, eager, flex or split"),
    ],
)
def test_a_kernel_that_would_be_wrong_is_refused_with_the_reason(family: str, wanted: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        choose(attention_ready(family), wanted, dtype=torch.float32)


def test_a_cpu_trains_with_the_dense_mask_and_says_so() -> None:
    found = choose(tiny_lm().model, dtype=torch.float32)
    assert str(found) == "attention: sdpa, because the kernels made for packed rows need a GPU, not a cpu"
    assert choose(tiny_lm().model, "split", dtype=torch.float32).kernel == "split"

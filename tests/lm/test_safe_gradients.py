"""No differentiated attention runs through cuDNN, whose backward pass returns NaN under some masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from latentwire.lm.masks.safe_gradients import safe_gradients, scaled_dot_product_attention
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.encoders.pool import Pool
from latentwire.wires.latent.transformer import Bidirectional
from latentwire.wires.latent.translators.distance_attention import Near
from tests.support.models import tiny_model, tiny_tokenizer

allowed = torch.backends.cuda.cudnn_sdp_enabled
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, bool]]]:
    """For every call of PyTorch's attention: whether gradients were on, and whether cuDNN was allowed."""
    seen: list[tuple[bool, bool]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: object, **kwargs: object) -> Tensor:
        seen.append((torch.is_grad_enabled(), allowed()))
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    assert allowed(), "PyTorch's default"
    yield seen
    assert allowed(), "the switch is as it was"


def _pool() -> Tensor:
    return Pool(8, 8, 2, heads=2, layers=1)(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool))


def _near() -> Tensor:
    states = torch.randn(2, 5, 8)
    return Near(8, 2)(states, states, torch.zeros(2, 5, 5), torch.ones(2, 5, dtype=torch.bool))


def _bidirectional() -> Tensor:
    return Bidirectional(8, 1, 2)(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool))


def _reading() -> Tensor:
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    prefix = Prefix.of_tokens([[1, 2, 3, 4], [5, 6, 7]], [[0, 0, 0, 0], [0, 0, 0]])
    return lm.forced(prefix, torch.tensor([[8], [9]])).hidden


def _stock() -> Tensor:
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    return lm.model(input_ids=torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]])).logits


@pytest.mark.parametrize("module", [_pool, _near, _bidirectional, _reading, _stock])
def test_attention_that_is_differentiated_avoids_cudnn(
    module: Callable[[], Tensor], calls: list[tuple[bool, bool]]
) -> None:
    module()
    differentiated = [cudnn for gradients, cudnn in calls if gradients]
    assert differentiated
    assert not any(differentiated)


def test_attention_without_gradients_keeps_the_fastest_kernel(calls: list[tuple[bool, bool]]) -> None:
    with torch.no_grad():
        _reading()
    assert calls
    assert all(cudnn and not gradients for gradients, cudnn in calls)


def test_a_block_inside_another_leaves_cudnn_off_until_the_outer_one_ends() -> None:
    with safe_gradients():
        with safe_gradients():
            assert not allowed()
        assert not allowed()
    assert allowed()


@needs_gpu
@pytest.mark.parametrize("width", [64, 192, 320, 448, 576])
def test_a_row_with_a_very_low_log_sum_exp_has_finite_gradients(width: int) -> None:
    """pytorch#196678, at the widths where cuDNN's backward pass fails: one query of one head scores -107."""
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, 14, width, 64, device="cuda", dtype=torch.bfloat16) * scale for scale in (0.1, 0.1, 1.0)
    )
    query[..., 0], key[..., 0] = 0, -107.5 * 8
    query[:, 3, 24, 0] = 1
    states = [tensor.requires_grad_() for tensor in (query, key, value)]
    see = torch.ones(2, 1, width, width, dtype=torch.bool, device="cuda")
    scaled_dot_product_attention(*states, attn_mask=see).sum().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.isfinite().all()) for tensor in states)

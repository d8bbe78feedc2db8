"""Loaded weights equal those of Transformers to the bit, are aligned, checked, and held once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from latentwire import LM, UserError
from latentwire.lm.loading import aligned_memory
from tests.support.checkpoints import write_plain
from tests.support.models import tiny_model


def patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every number that 16 bits can say."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_bit_pattern_that_is_not_finite_is_found(dtype: torch.dtype) -> None:
    for each, good in zip(patterns(dtype), patterns(dtype).isfinite().tolist(), strict=True):
        assert aligned_memory._finite_bits(aligned_memory._integers(each), dtype) == good


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, -torch.nan])
def test_infinity_and_nan_are_found_in_wider_dtypes(dtype: torch.dtype, value: float) -> None:
    edges = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, -0.0, 5e-324], dtype=dtype)
    assert aligned_memory._finite_bits(aligned_memory._integers(edges), dtype)
    edges[2] = value
    assert not aligned_memory._finite_bits(aligned_memory._integers(edges), dtype)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loaded_weights_equal_transformers_at_aligned_addresses(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model(family, seed=2)
    write_plain(model.bfloat16(), tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    ours = LM.load(tmp_path, device="cpu", dtype=dtype).model
    assert ours.state_dict().keys() == stock.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, stock.state_dict()[name])
        assert tensor.data_ptr() % aligned_memory.ALIGNMENT == 0
        assert tensor.is_contiguous()
    assert len(list(ours.parameters())) == len(list(stock.parameters()))


def shifted(model: torch.nn.Module) -> None:
    """Every parameter a view at an odd address, as into a file."""
    for parameter in model.parameters():
        room = torch.empty(parameter.numel() + 1, dtype=parameter.dtype)
        room[1:] = parameter.detach().flatten()
        parameter.data = room[1:].view(parameter.shape)


def test_pieces_and_chunks_cover_a_tensor_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligned_memory, "PIECE", 4 * 37)
    monkeypatch.setattr(aligned_memory, "CHUNK", 4 * 5)
    model = tiny_model("llama_tied")
    want = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shifted(model)
    turned = model.model.layers[0].mlp.up_proj.weight
    turned.data = turned.detach().T.contiguous().T
    aligned_memory.align(model, "it")
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.data_ptr() % aligned_memory.ALIGNMENT == 0 for tensor in model.parameters())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    # Each has memory of its own size: no view keeps a file or a larger buffer alive.
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())
    for at in (0, 36, 37, -1):
        broken = tiny_model("llama_tied")
        shifted(broken)
        broken.model.layers[1].mlp.up_proj.weight.data.view(-1)[at] = torch.nan
        with pytest.raises(UserError, match=r"weights: model.layers.1.mlp.up_proj.weight of it holds NaN"):
            aligned_memory.align(broken, "it")


def test_aligned_weights_stay_where_they_are() -> None:
    model = tiny_model()
    before = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    assert all(at % aligned_memory.ALIGNMENT == 0 for at in before.values())
    aligned_memory.align(model, "it")
    assert before == {name: tensor.data_ptr() for name, tensor in model.named_parameters()}

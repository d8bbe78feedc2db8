"""Weights that were changed in memory after they were mapped are never read from the file again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.lm.loading import aligned_memory, mapped_files

pytestmark = pytest.mark.skipif(not mapped_files.MAPS.exists(), reason="only Linux tells what is mapped")


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, torch.Tensor]:
    file = tmp_path / "w.safetensors"
    save_file({name: torch.arange(2**16, dtype=torch.float32) for name in ("one", "two")}, file)
    return load_file(file)


def known(tensor: torch.Tensor) -> bool:
    with mapped_files.files() as files:
        return files.at(tensor.data_ptr(), tensor.nbytes) is not None


def test_a_files_memory_is_known_until_it_is_written_to(weights: dict[str, torch.Tensor]) -> None:
    assert known(weights["one"])
    weights["one"][3] = -1.0
    assert not known(weights["one"])
    assert not known(torch.zeros(2**16))


def test_weights_changed_in_memory_are_copied_from_memory_and_not_from_the_file(
    weights: dict[str, torch.Tensor],
) -> None:
    model = torch.nn.Module()
    for name, tensor in weights.items():
        model.register_parameter(name, torch.nn.Parameter(tensor[1:]))  # no aligned address: it is moved
    model.one.data += 1.0
    want = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    aligned_memory.align(model, "it")  # type: ignore[arg-type]
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())


def test_a_file_that_another_has_replaced_is_not_read(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({"one": torch.zeros(2**17)}, tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "w.safetensors")
    assert not known(weights["two"])

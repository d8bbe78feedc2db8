"""Snapshots of a finetuning: what is trained, the optimizer's state, and everything that adapts.

A snapshot is written beside its place and renamed into it, so that a kill leaves the old one or the new one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TRAINED, OPTIMIZER, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, state: dict[str, Any]) -> None:
    """Write a snapshot; without an optimizer it can be restored but not continued from."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: p.contiguous() for name, p in trained(model).items()}, partial / TRAINED)
    if optimizer is not None:
        tensors, numbers = _flatten(optimizer)
        save_file(tensors, partial / OPTIMIZER)
        state = {**state, "optimizer": numbers}
    (partial / STATE).write_text(json.dumps(state, indent=1) + "\n")
    replace(partial, folder)


def replace(partial: Path, folder: Path) -> None:
    """Put a finished folder in the place of an old one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find(folder: Path) -> Path | None:
    """The snapshot at `folder`, or the one that a kill between two renames left beside it."""
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and old.exists():
        old.rename(folder)
    return folder if (folder / STATE).exists() and (folder / TRAINED).exists() else None


def remove(folder: Path) -> None:
    """Remove a snapshot; killed in between, what is left is not taken for one."""
    (folder / STATE).unlink()
    shutil.rmtree(folder)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restore a snapshot into model and optimizer; returns its state.

    Raises:
        RuntimeError: a trained parameter is missing from it or strange to it.
    """
    found, wanted = load_file(folder / TRAINED), trained(model)
    if found.keys() != wanted.keys():
        odd = sorted(found.keys() ^ wanted.keys())[0]
        raise RuntimeError(f"snapshot {folder} does not fit the model: {odd} is in one of them only")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    if optimizer is not None:
        _restore(optimizer, load_file(folder / OPTIMIZER), state["optimizer"])
    return state


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value.detach().contiguous().clone()
            else:
                numbers[f"{index}/{name}"] = value
    return tensors, numbers


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    whole = optimizer.state_dict()
    whole["state"] = {}
    for key, value in {**tensors, **numbers}.items():
        index, name = key.split("/", 1)
        whole["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(whole)

"""Snapshots of a training: what is trained, the optimizer's state, and everything that adapts.

A snapshot is written beside its place, forced to disk and renamed, so a kill at any instant leaves the old one or
the new one. Each holds the SHA-256 of its own files, and nothing of it is read before these have been compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from latentwire.files import write_atomically
from latentwire.training.sharding import full, like, local

TRAINED, OPTIMIZER, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
LAST = "last"
"""The newest snapshot that training can go on from; removed once the training is done."""
DONE = "done.json"
"""What a finished training came to: where it is, nothing is left to train."""
HASHES, OWN_HASH = "sha256", "state_sha256"


class Damaged(RuntimeError):
    """A snapshot is not what was written."""


@dataclass(frozen=True)
class Snapshot:
    """A verified snapshot on disk: its folder and its state."""

    folder: Path
    state: dict[str, Any]


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def finite(model: nn.Module) -> bool:
    """Whether all parameters in training, or this process's shares of them, are finite numbers."""
    return all(bool(torch.isfinite(local(weight)).all()) for weight in trained(model).values())


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    *,
    keep: int = 1,
    writes: bool = True,
) -> None:
    """Write a snapshot. What is sharded is gathered, so that it can be loaded in any number of processes.

    Args:
        folder: Its place; earlier ones move to `.NAME-1`, `.NAME-2` and so on.
        optimizer: None writes a snapshot that can be restored but not continued from.
        state: What else must come back: JSON values.
        keep: How many snapshots of this name stay, this one included.
        writes: False in all processes but one; they must call this too where weights are sharded.
    """
    weights = _gathered(trained(model), keep=writes)
    tensors, numbers = _flatten(optimizer, keep=writes) if optimizer is not None else ({}, {})
    if not writes:
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    hashes = {TRAINED: _write(partial / TRAINED, weights)}
    if optimizer is not None:
        hashes[OPTIMIZER] = _write(partial / OPTIMIZER, tensors)
        state = {**state, "optimizer": numbers}
    state = {**state, HASHES: hashes}
    write_atomically(partial / STATE, json.dumps({**state, OWN_HASH: _hash_of(state)}, indent=1) + "\n")
    _fsync(partial)
    for number in range(keep, 0, -1):
        _move(_earlier(folder, number - 1), _earlier(folder, number))
    partial.rename(folder)
    _fsync(folder.parent)
    shutil.rmtree(_earlier(folder, keep), ignore_errors=True)


def newest(
    folder: Path, log: Callable[[str], None], whole: Callable[[Snapshot], None] | None = None
) -> Snapshot | None:
    """The newest snapshot of this name that is as it was written; a damaged one is set aside, which is logged.

    Args:
        whole: Raises `Damaged` if something that belongs to the snapshot elsewhere is damaged.
    """
    for place in _places(folder):
        try:
            snapshot = Snapshot(place, _verified(place))
            if whole is not None:
                whole(snapshot)
            return snapshot
        except Damaged as damage:
            aside = folder.with_name(f".damaged-{place.name.lstrip('.')}")
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
            log(f"{place}: {damage}; it is set aside as {aside.name}, and training goes on from the one before it")
    return None


def find(folder: Path) -> Snapshot | None:
    """The newest snapshot of this name. Raises `Damaged` if it is not as it was written."""
    place = next(_places(folder), None)
    return None if place is None else Snapshot(place, _verified(place))


def exists(folder: Path) -> bool:
    """Whether there is any snapshot of this name, damaged or not."""
    return next(_places(folder), None) is not None


def remove(folder: Path) -> None:
    """Remove all snapshots of this name."""
    for place in list(_places(folder)):
        shutil.rmtree(place)


def load(snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Restore a verified snapshot into model and optimizer.

    Raises:
        RuntimeError: A trained parameter is missing from it or is not the model's.
    """
    stored, wanted = load_file(snapshot.folder / TRAINED), trained(model)
    if stored.keys() != wanted.keys():
        odd = sorted(stored.keys() ^ wanted.keys())[0]
        raise RuntimeError(f"snapshot {snapshot.folder} does not fit the model: {odd} is in one of them only")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(like(stored[name], parameter))
    if optimizer is not None:
        _restore(optimizer, load_file(snapshot.folder / OPTIMIZER), snapshot.state["optimizer"])


def _earlier(folder: Path, number: int) -> Path:
    """Where the snapshot lies that `number` later ones have replaced."""
    return folder if number == 0 else folder.with_name(f".{folder.name.lstrip('.')}-{number}")


def _places(folder: Path) -> Iterator[Path]:
    """The snapshots of a name, newest first; a kill between two renames leaves the first one out."""
    numbered = folder.parent.glob(f".{folder.name.lstrip('.')}-*")
    numbers = sorted(int(tail) for place in numbered if (tail := place.name.rpartition("-")[2]).isdecimal())
    yield from (place for number in (0, *numbers) if (place := _earlier(folder, number)).is_dir())


def _move(source: Path, target: Path) -> None:
    if source.exists():
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors, from wherever they are, and return the file's hash."""
    # To main memory one by one: a contiguous copy of all of them would need the accelerator's memory again.
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _fsync(path)
    return _file_hash(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _verified(folder: Path) -> dict[str, Any]:
    """The state of a snapshot whose files are what they were when it was written."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        own = state.pop(OWN_HASH)
        hashes = state[HASHES]
        if own != _hash_of(state):
            raise Damaged(f"found {STATE} changed since it was written")
        changed = [name for name, sha256 in hashes.items() if _file_hash(folder / name) != sha256]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(f"found it incomplete ({type(error).__name__}: {error})") from error
    if changed:
        raise Damaged(f"found {changed[0]} changed since it was written")
    return dict(state)


def _gathered(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors as they are, sharded ones whole and in main memory. keep: False only helps others to gather them."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return tensors
    whole = {}
    for name, tensor in tensors.items():
        value = full(tensor)
        if keep:
            whole[name] = value.cpu()
    return whole


def _flatten(optimizer: torch.optim.Optimizer, *, keep: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    seen: set[int] = set()
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if not isinstance(value, Tensor):
                numbers[f"{index}/{name}"] = value
                continue
            whole = full(value.detach())
            if not keep:
                continue
            # Never a second copy on an accelerator; a file must not hold one piece of memory under two names.
            tensor = whole.cpu()
            shared = tensor.untyped_storage().data_ptr() in seen
            tensors[f"{index}/{name}"] = tensor.clone() if shared else tensor
            seen.add(tensors[f"{index}/{name}"].untyped_storage().data_ptr())
    return tensors, numbers


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    whole = optimizer.state_dict()
    whole["state"] = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, value in {**tensors, **numbers}.items():
        index, name = key.split("/", 1)
        if isinstance(value, Tensor):
            value = like(value, weights[int(index)])
        whole["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(whole)

"""Fingerprints of frozen weights: a wire only fits the weights that it was trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from latentwire.errors import UserError
from latentwire.lm.model import LM


def fingerprint(lm: LM) -> str:
    """The fingerprint of a model's weights in bfloat16, the same in whatever precision they were loaded."""
    return of_module(lm.model)


def of_module(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers that a module saves, by name, in bfloat16."""
    digest = hashlib.sha256()
    for name, each in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(each.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


class Fingerprints:
    """Fingerprints of the frozen models that a wire uses, each computed once, when it is first needed.

    Args:
        models: by name, a function that computes the fingerprint.
    """

    def __init__(self, models: Mapping[str, Callable[[], str]]) -> None:
        self._models = dict(models)
        self._found: dict[str, str] = {}

    def of(self, name: str) -> str:
        if name not in self._found:
            self._found[name] = self._models[name]()
        return self._found[name]

    def filled(self, known: Mapping[str, str] | None) -> dict[str, str]:
        """`known`, with the fingerprints of the models that it lacks."""
        known = known or {}
        return {**{name: self.of(name) for name in self._models if name not in known}, **known}

    def check(self, folder: Path, expected: Mapping[str, str] | None) -> None:
        """Compare the loaded models' weights with those that a wire was trained with.

        Raises:
            UserError: a model has other weights.
        """
        for name in self._models.keys() & (expected or {}).keys():
            wanted = (expected or {})[name]
            if self.of(name) != wanted:
                raise UserError(
                    f"wire: {folder} was trained for other weights of {name}: found fingerprint "
                    f"{self.of(name)[:12]}, expected {wanted[:12]}."
                )

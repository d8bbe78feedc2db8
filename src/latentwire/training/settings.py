"""The base class of everything that a study's YAML configures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Typed settings: unknown keys, NaN and infinity are errors, and values do not change once they are set."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def fastest(half: str, single: str) -> Callable[[Any], Any]:
    """A validator that turns the word `fastest` into the precision that this machine computes faster.

    Args:
        half: what bfloat16 is called, and single: what float32 is called.
    """

    def settled(value: Any) -> Any:
        if isinstance(value, str) and value not in (half, single, "fastest"):
            raise ValueError(f"found {value!r}, expected '{single}', '{half}' or 'fastest'")
        if value != "fastest":
            return value
        from latentwire.lm.loading.processor import (
            prefers_bfloat16,  # PyTorch, which reading a study does not need
        )

        return half if prefers_bfloat16() else single

    return settled

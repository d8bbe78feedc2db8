"""The base class of everything that a study's YAML configures."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Typed settings: unknown keys, NaN and infinity are errors, and values do not change once they are set."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

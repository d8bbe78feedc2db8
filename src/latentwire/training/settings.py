"""The base class of everything that a study's YAML configures."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Typed settings: an unknown key is an error, and values do not change once they are set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

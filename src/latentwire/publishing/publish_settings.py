"""`PublishSettings`: what a study publishes, as its YAML writes it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from latentwire.errors import UserError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")
STAGE = "{stage}"


class PublishSettings(BaseModel):
    """Publish every stage that trains, and again when an evaluation has measured it.

    Attributes:
        repo: OWNER/NAME, with `{stage}` where the stage's name goes; without it, the name follows after a hyphen.
        public: whether everybody can read a repository that is made for it.
        checkpoint: which checkpoint.
        stages: only these stages; None takes all that train.
        call: for a local model, the hub id by which others have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    public: bool = False
    checkpoint: Literal["best", "final"] = "best"
    stages: tuple[str, ...] | None = None
    call: dict[str, str] = Field(default_factory=dict)

    @field_validator("repo")
    @classmethod
    def _spelled(cls, value: str) -> str:
        try:
            check_repo(value.replace(STAGE, "stage"))
        except UserError as error:
            raise ValueError(str(error).removeprefix("repo: ").rstrip(".")) from error
        return value

    def repo_of(self, stage: str) -> str:
        """The repository of one stage."""
        return self.repo.replace(STAGE, stage) if STAGE in self.repo else f"{self.repo}-{stage}"


def check_repo(name: str) -> None:
    """Refuse what is no repository's name on the hub.

    Raises:
        UserError: It has no owner, or letters that no name has.
    """
    if _REPO.fullmatch(name) is None or name.endswith((".git", ".ipynb")) or "--" in name or ".." in name:
        raise UserError(
            f"repo: found {name!r}, expected OWNER/NAME of letters, digits, hyphens, dots and underscores."
        )

"""What a user says about decoding: in a study's YAML, or on the command line."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentwire.errors import UserError
from latentwire.lm.decoding.choose import Decoding


class DecodingSettings(BaseModel):
    """Changes to how a task's answers are generated; what is None stays as the task has it.

    Attributes:
        max_new_tokens: the longest answer, in tokens.
        min_new_tokens: no answer ends before this many tokens.
        temperature, top_p: 0 is greedy, the default.
        first_temperature, first_top_p: the same for the first token only.
        stop: strings at which an answer ends.
        suppress_tokens: tokens, as text, that are never chosen in the first N steps; None bans them in all steps.

    Example:
        >>> import latentwire as lw
        >>> lw.DecodingSettings(max_new_tokens=24, suppress_tokens={"The": 1}).over(lw.Decoding()).max_new_tokens
        24
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int | None = Field(default=None, ge=1)
    min_new_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    first_temperature: float | None = Field(default=None, ge=0)
    first_top_p: float | None = Field(default=None, gt=0, le=1)
    stop: tuple[str, ...] | None = None
    suppress_tokens: dict[str, int | None] | None = None

    @classmethod
    def asked(cls, suppress: list[str] | None = None, **given: object) -> DecodingSettings | None:
        """What the options of a command say; None where nothing is said.

        Args:
            suppress: `TOKEN` or `TOKEN:STEPS`.
            given: the other fields.

        Raises:
            UserError: a value that a field does not take.
        """
        fields = {name: value for name, value in given.items() if value is not None}
        if suppress:
            fields["suppress_tokens"] = dict(_banned(text) for text in suppress)
        try:
            return cls.model_validate(fields) if fields else None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{where}: found {first['input']!r}; {first['msg']}.") from error

    def then(self, other: DecodingSettings | None) -> DecodingSettings:
        """These settings with another's, where it has some, in their place."""
        return self if other is None else self.model_copy(update=other.model_dump(exclude_none=True))

    def over(self, how: Decoding) -> Decoding:
        """A task's own decoding with these changes.

        Raises:
            UserError: they do not go together.
        """
        changes = self.model_dump(exclude_none=True)
        if self.suppress_tokens is not None:
            changes["suppress_tokens"] = tuple(self.suppress_tokens.items())
        try:
            return replace(how, **changes)
        except ValueError as error:
            raise UserError(f"decoding: {error}.") from error


def _banned(text: str) -> tuple[str, int | None]:
    token, colon, steps = text.rpartition(":")
    if not colon or not token or not steps.isdigit():
        return text, None
    return token, int(steps)

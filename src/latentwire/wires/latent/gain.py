"""`Gain`: a factor on what latents deliver, constant or by decoding step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_PART = re.compile(r"(\d+(?:\.\d+)?)(?:x([1-9]\d*))?")


@dataclass(frozen=True)
class Gain:
    """A factor on what a reader gets of latents: on soft tokens, and on the values of keys and values.

    Written `0.8`, or by decoding step as in `1.5x1+1.2x3+1`: 1.5 for the first token, 1.2 for the next three and 1
    for the rest.

    Attributes:
        parts: factors with the number of steps that each holds for; the last one holds for all that follow.
    """

    parts: tuple[tuple[float, int], ...] = ((1.0, 0),)

    @classmethod
    def parse(cls, text: object) -> Gain:
        """A gain as it is written.

        Raises:
            ValueError: anything else.
        """
        if isinstance(text, Gain):
            return text
        found = [_PART.fullmatch(part) for part in str(text).split("+")]
        parts = [(float(part[1]), int(part[2] or 0)) for part in found if part is not None]
        if len(parts) != len(found) or not all(steps for _, steps in parts[:-1]) or parts[-1][1]:
            raise ValueError("expected a factor such as 0.8, or factors by step such as 1.5x1+1.2x3+1")
        return cls(tuple(parts))

    def at(self, step: int) -> float:
        """The factor for the token of this decoding step, from 0."""
        for factor, steps in self.parts[:-1]:
            if step < steps:
                return factor
            step -= steps
        return self.parts[-1][0]

    @property
    def changes(self) -> tuple[int, ...]:
        """The decoding steps at which the factor changes."""
        ends: list[int] = []
        for _, steps in self.parts[:-1]:
            ends.append(steps + (ends[-1] if ends else 0))
        return tuple(ends)

    def __str__(self) -> str:
        return "+".join(f"{factor:g}" + (f"x{steps}" if steps else "") for factor, steps in self.parts)


GainOption = Annotated[Gain, BeforeValidator(Gain.parse), PlainSerializer(str, return_type=str)]

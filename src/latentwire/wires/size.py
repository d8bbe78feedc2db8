"""How much of a context a wire keeps: one rule for all wires, so that wires of one size can be compared."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field, model_validator


class Sized(BaseModel):
    """A size, given as a ratio or as a number of tokens; exactly one of the two is set.

    Attributes:
        ratio: columns read for each column kept. A context of L columns (its tokens and those before them, such as
            BOS) keeps 1 + ⌈(L − 1) / ratio⌉, as many as a latent wire with `Anchors` or `Mean` of that ratio.
        tokens: how many columns are kept, or all where there are fewer.
    """

    ratio: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.ratio is None) == (self.tokens is None):
            raise ValueError("ratio or tokens is required, and only one of the two")
        return self

    def kept(self, length: int) -> int:
        """How many of `length` columns are kept."""
        if self.tokens is not None:
            return min(self.tokens, length)
        assert self.ratio is not None
        return length if self.ratio == 1 or not length else 1 - (1 - length) // self.ratio

    def kept_of_text(self, length: int, framing: int) -> int:
        """How many tokens of a context are kept as text, at least one.

        Args:
            length: columns of the context as a reader reads it.
            framing: how many of them are not the context's own (BOS, a line break). They are read whatever is cut
                off, so under `ratio` they count.
        """
        return self.kept(length - framing) if self.tokens is not None else max(1, self.kept(length) - framing)

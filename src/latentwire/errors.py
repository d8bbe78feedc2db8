"""`UserError` for input that the user can correct, and the nearest valid name for its message."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input, said in one sentence: the field, what was found, what was expected.

    The command line prints it without a traceback and exits with status 2. It is one line whatever a file or an
    option called things: what cannot be printed, a line break among it, is written as an escape.

    Args:
        message: The sentence.

    Example:
        >>> raise UserError("limit: found -3, expected a whole number of examples, 1 or more.")
        Traceback (most recent call last):
        latentwire.errors.UserError: limit: found -3, expected a whole number of examples, 1 or more.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


def one_of(name: str, valid: Iterable[str]) -> str:
    """`one of a, b, c (nearest: b)`, for a message about a name that is none of the valid ones.

    Example:
        >>> one_of("txt", ["text", "none"])
        'one of text, none (nearest: text)'
    """
    names = list(valid)
    return f"one of {', '.join(names)}{nearest(name, names)}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """` (nearest: b)`, or nothing where no valid name is spelt like `found`.

    Example:
        >>> nearest("txt", ["text", "none"])
        ' (nearest: text)'
    """
    near = get_close_matches(name, list(valid), n=1)
    return f" (nearest: {near[0]})" if near else ""


def short_of_memory(error: BaseException) -> str | None:
    """The sentence for an error that too little memory caused, on an accelerator or not; None for any other.

    Example:
        >>> short_of_memory(ValueError("no")) is None
        True
    """
    told = str(error)
    if isinstance(error, MemoryError) or "out of memory" in told or "can't allocate memory" in told:
        return "there is not enough memory for it; take a smaller model, batch or --limit, or another dtype"
    return None

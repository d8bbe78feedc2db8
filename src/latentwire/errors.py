"""The one exception that is the user's to mend, and the words for a name that is none of the valid ones."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input, told in one sentence: the field, what was found, what was expected.

    The command line prints it without a traceback and exits with status 2.
    """


def one_of(found: str, valid: Iterable[str]) -> str:
    """`one of a, b, c (nearest: b)`, for a sentence about a name that is none of them."""
    names = list(valid)
    near = get_close_matches(found, names, n=1)
    return f"one of {', '.join(names)}" + (f" (nearest: {near[0]})" if near else "")
